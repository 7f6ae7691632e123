"""New weights by every transport, on real actors: learner, engine, process group.

`gloo` is what `nccl` is between CPUs: the same engine of vLLM's, the same calls, and
another communicator. One fleet runs through all of it, because a start costs most.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.contract import oracle
from tests.contract.learner_ranks import TEACHER_WIDTH
from tests.make import prompt, scored
from tests.runs import Setting
from topd_ray.actors.calls import Calls
from topd_ray.actors.cluster import connected
from topd_ray.actors.fleet import open_fleet, put
from topd_ray.actors.protocols import (
    DirectEnds,
    Fleet,
    RankShare,
    RolloutChunk,
    SendingLearners,
)
from topd_ray.actors.replacement import FailureBudget, Replacement
from topd_ray.config import Config, load_config
from topd_ray.driver.direct_transfer import DirectTransfer
from topd_ray.driver.weight_sync import WeightSync
from topd_ray.engines.protocols import TransferGroup, TransferPiece
from topd_ray.messages import RolloutRequest
from topd_ray.records.run_folder import RunFolder

pytestmark = [pytest.mark.engines]
BUFFER_BYTES = 5_000
"""Several buffers for the tiny student, whose largest weight is one by itself."""
MAX_TOKENS = 24
PROMPTS = oracle.prompts(7, [5, 20])


class Killing:
    """The learners, and a kill -9 of the engine when it waits in the broadcast."""

    def __init__(self, learners: SendingLearners) -> None:
        self._learners = learners
        self.kills = False
        self.killed = list[int]()

    @property
    def names(self) -> Sequence[str]:
        return self._learners.names

    async def meet_engines(self) -> tuple[str, int]:
        return await self._learners.meet_engines()

    async def open_sender(
        self, transport: Any, group: TransferGroup, timeout_s: float
    ) -> None:
        await self._learners.open_sender(transport, group, timeout_s)

    async def next_piece(self, *, is_first: bool) -> TransferPiece | None:
        if self.kills and not is_first:
            self.kills = False
            await asyncio.sleep(1.0)  # the engine has been told, and waits
            (engine,) = rollout_processes()
            engine.kill()
            self.killed.append(engine.pid)
        return await self._learners.next_piece(is_first=is_first)

    async def close_sender(self) -> None:
        await self._learners.close_sender()


def rollout_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::RolloutWorker"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@dataclass
class Story:
    """Tokens of each version, by the engine and by transformers; and what was lost."""

    decoded: dict[int, list[list[int]]]
    expected: dict[int, list[list[int]]]
    failures: list[tuple[int, str]]
    losses: list[str]
    killed: list[int]


@pytest.fixture(scope="module")
def story(setting: Setting) -> Story:
    """Versions 1 to 4: the store, a broadcast, one with a kill in it, one after it."""
    chosen = load_config(
        setting.file,
        [
            "run.name=transfers",
            "rollout.temperature=0",
            f"rollout.max_response_tokens={MAX_TOKENS}",
            "learner.lr=0.05",
            "run.method=opd",
            "teacher.engine.backend=hf",
            "weights.transport=gloo",
            "weights.deadline_s=120",
            "evaluation.path=null",
        ],
    )
    return asyncio.run(_played(chosen))


async def _played(chosen: Config) -> Story:
    story = Story({}, {}, [], [], [])
    replacement = Replacement(
        FailureBudget(1, window_steps=100), lambda actor, _: story.losses.append(actor)
    )
    with connected(chosen):
        opening = open_fleet(
            chosen,
            RunFolder.create(chosen),
            Calls.within(chosen.cluster),
            replacement,
            total_steps=10,
        )
        async with opening as fleet:
            assert fleet.direct is not None
            killing = Killing(fleet.direct.learners)
            direct = _transfer(chosen, fleet, killing)
            failed = story.failures.append
            sync = WeightSync(fleet, direct, on_failure=lambda *one: failed(one))
            for version in range(1, 5):
                await _step(chosen, fleet, version)
                killing.kills = version == 3
                by_store = WeightSync(fleet)
                await (by_store if version == 1 else sync).publish(version)
                await (by_store if version == 1 else sync).done()
                story.decoded[version] = await _decoded(fleet, version)
                folder = Path(chosen.run.root) / f"exported-{version}"
                story.expected[version] = await _expected(folder, fleet)
            story.killed = killing.killed
    return story


def _transfer(chosen: Config, fleet: Fleet, learners: Any) -> DirectTransfer:
    assert fleet.direct is not None
    ends: DirectEnds = replace(fleet.direct, learners=learners)
    return DirectTransfer(ends, chosen.weights, buffer_bytes=BUFFER_BYTES)


class Silent:
    """Nothing is recorded."""

    def worked(self, *_: object, **__: object) -> None:
        """See `WorkLog`."""


async def _step(chosen: Config, fleet: Fleet, version: int) -> None:
    """One update of the learner, on a rollout that is made up."""
    held = scored("made-up", width=TEACHER_WIDTH, length=24)
    rollout = replace(held.rollout, policy_version=version - 1)
    made_up = replace(held, rollout=rollout)
    share = RankShare(("made-up",), (put(chosen, made_up),), ())
    await fleet.learners.accumulate([share], 0.0, Silent())
    report = await fleet.learners.step(skip=False, log=Silent())
    assert (report.step, report.skipped) == (version, False)


async def _decoded(fleet: Fleet, version: int) -> list[list[int]]:
    (engine,) = fleet.rollouts
    asked = [
        RolloutRequest(
            prompt=replace(prompt(index), token_ids_P=token_ids_P), sample_index=0
        )
        for index, token_ids_P in enumerate(PROMPTS)
    ]
    found: dict[str, list[int]] = {}
    async for chunk in engine.roll_out(asked, policy_version=version, room=8):
        assert isinstance(chunk, RolloutChunk)
        for rollout in await chunk.rollouts:
            found[rollout.rollout_id] = rollout.response_ids_N.tolist()
    return [found[request.rollout_id] for request in asked]


async def _expected(folder: Path, fleet: Fleet) -> list[list[int]]:
    """What transformers decodes with the learner's weights."""
    await fleet.learners.export(folder)
    model = oracle.load(folder)
    return [oracle.greedy(model, prompt, MAX_TOKENS) for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("version", "way"),
    [(1, "store"), (2, "broadcast"), (3, "broadcast with a kill"), (4, "broadcast")],
)
def test_the_engine_answers_as_the_model_that_was_sent(
    story: Story, version: int, way: str
) -> None:
    assert story.decoded[version] == story.expected[version], way
    assert story.expected[version] != story.expected.get(version - 1)


def test_an_engine_killed_in_a_transfer_is_replaced_and_loads_from_the_store(
    story: Story,
) -> None:
    assert len(story.killed) == 1
    assert story.losses == ["rollout[0]"]
    ((version, reason),) = story.failures  # version 4 had a group again
    assert version == 3
    assert "rollout[0] died in take_piece" in reason
