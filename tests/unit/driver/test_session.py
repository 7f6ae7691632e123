import asyncio
from pathlib import Path

import pytest

from topd_ray.config import parse_config
from topd_ray.driver.checkpoint import save_checkpoint
from topd_ray.driver.session import resume, train
from topd_ray.errors import UserError
from topd_ray.records.run_folder import RunFolder


def run_folder(root: Path) -> RunFolder:
    """A run with two checkpoints."""
    config = parse_config(
        {
            "run": {"root": str(root), "name": "r"},
            "prompts": {"path": "p"},
            "teacher": {"model": "t"},
            "learner": {"model": "s"},
        },
        source="test",
    )
    folder = RunFolder.create(config)

    async def write(aside: Path) -> None:
        (aside / "shard").write_text("state")

    for step in (1, 2):
        saving = save_checkpoint(
            folder, write, step=step, driver={"step": step}, keep=2, keep_every=0
        )
        asyncio.run(saving)
    return folder


def test_a_run_that_another_process_works_on_is_refused_and_left_as_it_is(
    tmp_path: Path,
) -> None:
    folder = run_folder(tmp_path)
    latest = folder.checkpoints / "latest"
    with (
        folder.locked(),
        pytest.raises(UserError, match="works on this run; wait for it"),
    ):
        resume(folder.path, "step_1")
    assert latest.read_text() == "step_2\n"


def test_a_checkpoint_that_is_not_there_moves_nothing(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    with pytest.raises(UserError, match=r"--checkpoint step_9: .* has step_1, step_2"):
        resume(str(folder.path), "step_9")
    assert (folder.checkpoints / "latest").read_text() == "step_2\n"


def test_a_name_that_is_taken_by_another_config_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    other = RunFolder.existing(folder.path)[1]
    other = other.model_copy(update={"run": other.run.model_copy(update={"seed": 7})})
    with pytest.raises(UserError, match=r"may not change run\.seed 0 -> 7: every draw"):
        train(other, resume_if_there=True)
