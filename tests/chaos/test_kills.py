"""A run that is killed again and again, at moments of chance and inside checkpoint
writes.
"""

import random
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.chaos.harm import (
    assert_same,
    ended,
    has_steps,
    kill_all,
    num_steps,
    started,
    wait_until,
)
from tests.runs import Run, Setting

pytestmark = [pytest.mark.engines, pytest.mark.chaos, pytest.mark.timeout(3000)]
STALE = "rollout.max_staleness=1"


def killed(
    run: Run, arguments: tuple[str | Path, ...], *, times: int
) -> tuple[int, int]:
    """Kill a run so often, resume it each time; steps done again, kills inside a
    checkpoint write.

    One in four as it is loading, one in four inside a write, the others as it steps.
    """
    rng, again, inside = random.Random(0), 0, 0
    for number in range(times):
        with started(*arguments) as process:
            before = num_steps(run)
            match number % 4:
                case 0:
                    time.sleep(rng.uniform(0, 15))
                case 1:
                    wait_until(lambda: bool(writing(run)), process, every_s=0)
                case _:
                    wait_until(has_steps(run, before + 1), process)
                    time.sleep(rng.uniform(0, 2))
            assert process.poll() is None, process.communicate()[0]
            kill_all(process.pid)
            process.wait()
        inside += bool(writing(run))
        again += num_steps(run) - kept(run)
    with started(*arguments) as process:
        ended(process)
    return again, inside


def writing(run: Run) -> list[Path]:
    return list((run.path / "checkpoints").glob(".step_*.partial"))


def kept(run: Run) -> int:
    latest = run.path / "checkpoints" / "latest"
    return int(latest.read_text().removeprefix("step_")) if latest.is_file() else 0


def windows(run: Run) -> list[tuple[int, str, int]]:
    """Step, rollout and policy version of everything that was learned from, each
    once.
    """
    return sorted(
        {
            (
                int(file.stem.removeprefix("step_")),
                row["rollout_id"],
                row["policy_version"],
            )
            for file in (run.path / "windows").glob("*.parquet")
            for row in pq.read_table(
                file, columns=["rollout_id", "policy_version"]
            ).to_pylist()
        }
    )


@pytest.mark.parametrize(
    ("name", "times", "overrides"),
    [
        ("fresh", 20, ("run.checkpoint_every=1",)),
        ("stale", 8, ("run.checkpoint_every=3", STALE)),
    ],
)
def test_a_run_killed_at_many_moments_ends_as_one_that_was_not(
    setting: Setting,
    name: str,
    times: int,
    overrides: tuple[str, ...],
    record_property: Any,
) -> None:
    record_property(
        "fault", f"kill -9 of everything, staleness {int(STALE in overrides)}"
    )
    length = ("run.steps=45", *overrides)
    unharmed = setting.train_alone(f"unharmed-{name}", *length)
    run = setting.run(f"killed-{name}")
    start: tuple[str | Path, ...] = ("train", "--resume", setting.file)
    arguments = (*start, f"run.name=killed-{name}", *length)
    again, inside = killed(run, arguments, times=times)
    record_property("injected", f"{times}, of them {inside} inside a checkpoint write")
    record_property("done_again", f"{again} steps")
    assert inside > 0
    learned = windows(run)
    names = [rollout for _, rollout, _ in learned]
    assert len(set(names)) == len(
        names
    )  # (a rollout without a candidate has no window)
    assert learned == windows(unharmed)
    for step, _, version in learned:
        assert step - 1 - (STALE in overrides) <= version <= step - 1
    assert_same(run, unharmed)
