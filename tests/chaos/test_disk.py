"""A disk that is full when the checkpoint is written."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harm import assert_same, resume
from tests.runs import Run, Setting, topd_process

pytestmark = [pytest.mark.engines, pytest.mark.chaos, pytest.mark.timeout(500)]


def mount(folder: Path, options: str) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.fixture
def small_disk(setting: Setting, whole: Run) -> Iterator[Path]:
    """The checkpoints of the run `full`, with room for one and a half."""
    folder = setting.run("full").path / "checkpoints"
    folder.mkdir(parents=True)
    one = sum(
        f.stat().st_size for f in (whole.path / "checkpoints" / "step_4").rglob("*")
    )
    if not mount(folder, f"size={one * 3 // 2}"):
        pytest.skip("mounting a tmpfs takes the right to")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.fault(
    "disk full while a checkpoint is written", injected=1, done_again="2 steps"
)
def test_a_full_disk_costs_the_checkpoint_that_did_not_fit_and_nothing_else(
    setting: Setting, whole: Run, small_disk: Path
) -> None:
    run = setting.run("full")
    done = topd_process("train", setting.file, "run.name=full")
    assert done.code == 1, done.output
    assert "No space left on device" in done.output
    assert f"topd resume {run.path}" in done.output
    assert (small_disk / "latest").read_text() == "step_2\n"
    assert {path.name for path in small_disk.iterdir()} == {"latest", "step_2"}
    assert mount(small_disk, "remount,size=100m")
    resume(run)
    assert_same(run, whole)
