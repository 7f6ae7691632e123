"""A checkpoint is whole, byte for byte, or it is refused and another one is offered."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.driver.checkpoint import (
    MANIFEST,
    fault,
    make_latest,
    open_checkpoint,
    save_checkpoint,
    seal,
)
from topd_ray.errors import UserError
from topd_ray.records.run_folder import RunFolder


class Learner:
    """Writes some bytes, and does what the test wants meanwhile."""

    def __init__(self, during: Callable[[Path], None] = lambda _: None) -> None:
        self._during = during

    async def save(self, aside: Path) -> None:
        (aside / "shards").mkdir()
        (aside / "shards" / "a.bin").write_bytes(bytes(range(256)) * 4)
        self._during(aside)


def save(
    folder: RunFolder, step: int, *, keep: int = 2, every: int = 0, **how: Any
) -> Path:
    saving = save_checkpoint(
        folder,
        Learner(**how).save,
        step=step,
        driver={"step": step},
        keep=keep,
        keep_every=every,
    )
    return asyncio.run(saving)


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir() if path.is_dir())


def test_what_was_saved_is_opened(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 1)
    found = open_checkpoint(folder)
    assert found is not None
    assert (found.path.name, found.driver) == ("step_1", {"step": 1})


def test_the_newest_are_kept_and_every_so_many_for_good(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(1, 9):
        save(folder, step, keep=2, every=3)
    assert names(folder) == ["step_3", "step_6", "step_7", "step_8"]


def test_the_newest_one_is_not_written_again(tmp_path: Path) -> None:
    """SIGTERM right after a checkpoint asks for the same one: it must not be gone for a
    moment.
    """
    folder = RunFolder(tmp_path)
    save(folder, 1)
    before = (tmp_path / "checkpoints" / "step_1" / MANIFEST).stat()

    def fails(_: Path) -> None:
        raise AssertionError("written again")

    save(folder, 1, during=fails)
    after = (tmp_path / "checkpoints" / "step_1" / MANIFEST).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_going_on_from_an_older_one_never_drops_the_one_that_is_written(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        save(folder, step, keep=3)
    make_latest(folder, "step_1")
    save(folder, 2, keep=1)
    found = open_checkpoint(folder)
    assert found is not None
    assert found.path.name == "step_2"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_changed_byte_and_no_lost_one_goes_unseen(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "below").mkdir()
    (folder / "driver.json").write_text("{}")
    (folder / "below" / "shard").write_bytes(
        data.draw(st.binary(min_size=1, max_size=300))
    )
    seal(folder)
    assert fault(folder) is None
    file = data.draw(st.sampled_from(["driver.json", "below/shard"]))
    content = bytearray((folder / file).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "grow", "remove"])):
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[place:]
        case "grow":
            content.append(0)
        case _:
            (folder / file).unlink()
            assert "is missing" in str(fault(folder))
            return
    (folder / file).write_bytes(content)
    assert Path(file).name in str(fault(folder))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"driver.json": 3}', "{", '"x"'])
def test_a_manifest_that_says_nothing_is_a_fault(tmp_path: Path, text: str) -> None:
    (tmp_path / "driver.json").write_text("{}")
    seal(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    assert MANIFEST in str(fault(tmp_path))


def test_a_broken_newest_one_is_refused_and_the_one_before_is_offered(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        save(folder, step)
    shard = folder.checkpoints / "step_2" / "shards" / "a.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(
        UserError,
        match=r"step_2: a\.bin has 1,023 bytes, 1,024 were written.*"
        r"--checkpoint step_1",
    ):
        open_checkpoint(folder)
    found = open_checkpoint(folder, "step_1")
    assert found is not None
    assert found.driver == {"step": 1}
    # Reading changes nothing: another process may hold the lock of this run.
    assert (folder.checkpoints / "latest").read_text() == "step_2\n"
    make_latest(folder, found.path.name)
    again = open_checkpoint(folder)
    assert again is not None
    assert again.path.name == "step_1"


def test_a_save_that_fails_leaves_the_one_before_and_nothing_else(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 1)

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save(folder, 2, during=full)
    assert names(folder) == ["step_1"]
    found = open_checkpoint(folder)
    assert found is not None
    assert found.path.name == "step_1"


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save(folder, 1)
    with pytest.raises(UserError, match="step_1"):
        open_checkpoint(folder, "../../elsewhere")
