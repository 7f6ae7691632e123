"""The teacher that follows the student: what a checkpoint keeps of it (OPSD)."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from topd_ray.actors.protocols import PublishedWeights
from topd_ray.config import parse_config
from topd_ray.driver.checkpoint import Checkpoint
from topd_ray.driver.state import RunState
from topd_ray.driver.training import Training
from topd_ray.records.receipts import Span

FOLLOW = 10


class Engine:
    """Remembers which versions it loaded."""

    name = "engine"

    def __init__(self) -> None:
        self.loaded = list[int]()

    async def update(self, weights: PublishedWeights) -> Span:
        self.loaded.append(weights.policy_version)
        return Span(0.0, 0.0)

    def forget_weights(self) -> None:
        """Nothing is held."""


class Learners:
    """Remembers what was saved and loaded; its weights are their version."""

    names = ("learner[0]",)

    def __init__(self) -> None:
        self.saved_teacher = list[int]()
        self.loaded_teacher = list[int]()

    async def publish(self, policy_version: int) -> PublishedWeights:
        return PublishedWeights(policy_version, (), Span(0.0, 0.0))

    async def follow_teacher(self) -> None:
        """The head is the student's."""

    async def save(self, folder: Path) -> None:
        (folder / "shard").write_text("state")

    async def load(self, folder: Path) -> None:
        assert folder.name.startswith("step_")

    async def save_teacher(self, folder: Path, weights: PublishedWeights) -> None:
        assert folder.name == "teacher"
        self.saved_teacher.append(weights.policy_version)

    async def load_teacher(self, folder: Path, policy_version: int) -> PublishedWeights:
        assert folder.name == "teacher"
        self.loaded_teacher.append(policy_version)
        return PublishedWeights(policy_version, (), Span(0.0, 0.0))


def training(state: RunState | None = None) -> tuple[Training, Any, Any]:
    chosen = parse_config(
        {
            "run": {"method": "opsd", "checkpoint_every": FOLLOW},
            "prompts": {"path": "p"},
            "teacher": {"follow_every": FOLLOW},
            "learner": {"model": "s"},
        },
        source="test",
    )
    fleet = SimpleNamespace(
        rollouts=[Engine()],
        decoders=[Engine()],
        learners=Learners(),
        direct=None,
        takes_turns=frozenset(),
    )
    run = SimpleNamespace(
        config=chosen,
        folder=None,
        log=SimpleNamespace(event=lambda *_, **__: None, say=lambda _: None),
        state=state or RunState.of(chosen, None),
    )
    return Training(run, fleet, None), run, fleet


@pytest.mark.parametrize(
    ("followed", "step", "saved"),
    [(None, 3, []), (10, 10, []), (10, 13, [10]), (20, 20, []), (20, 21, [20])],
)
def test_a_checkpoint_between_two_follows_keeps_the_teacher(
    tmp_path: Path, followed: int | None, step: int, saved: list[int]
) -> None:
    made, run, fleet = training()

    async def go() -> None:
        if followed is not None:
            await made._weight_sync.publish(followed, to_teachers=True)
        run.state.step = step
        await made._write_learner(tmp_path)

    asyncio.run(go())
    assert fleet.learners.saved_teacher == saved


@pytest.mark.parametrize(
    ("teacher_version", "step", "teachers_load", "from_file"),
    [(0, 3, [], []), (10, 10, [10], []), (10, 13, [10], [10]), (20, 21, [20], [20])],
)
def test_a_resumed_teacher_is_the_one_that_was_stopped(
    teacher_version: int, step: int, teachers_load: list[int], from_file: list[int]
) -> None:
    _, run, _ = training()
    plain = run.state.plain() | {"step": step, "teacher_version": teacher_version}
    kept = Checkpoint(Path(f"step_{step}"), json.loads(json.dumps(plain)))
    made, _, fleet = training(RunState.of(run.config, kept))
    asyncio.run(made._restore(kept.path))
    assert fleet.decoders[0].loaded == teachers_load
    assert fleet.learners.loaded_teacher == from_file
    assert fleet.rollouts[0].loaded == [step]
