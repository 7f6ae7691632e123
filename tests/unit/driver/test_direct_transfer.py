"""A transfer from memory to memory, led by the run: order, deadlines, losses.

Fakes, for losses at moments of the test's choosing; `tests/contract/test_transfers.py`
has real engines, groups and processes.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from topd_ray.actors.protocols import DirectEnds, PublishedWeights
from topd_ray.config import WeightsConfig
from topd_ray.driver.direct_transfer import DirectTransfer
from topd_ray.driver.weight_sync import WeightSync
from topd_ray.engines.protocols import TransferGroup, TransferPiece
from topd_ray.errors import ActorDiedError, ActorFailedError, TopdError
from topd_ray.records.receipts import Span
from topd_ray.simulate.clock import run_in_virtual_time

DEADLINE_S = 30.0
BROADCAST = TransferPiece(update_info={"names": ["w"]}, is_first=True, is_last=True)


def ipc_pieces(count: int) -> list[TransferPiece]:
    """Buffers, and the end of the version."""
    return [
        TransferPiece(
            update_info=None if index == count else {"names": [f"w{index}"]},
            is_first=index == 0,
            is_last=index == count,
            is_read_first=True,
        )
        for index in range(count + 1)
    ]


class Learners:
    """Sends pieces; a broadcast ends when every engine has received it."""

    names = ("learner[0]",)

    def __init__(self, pieces: list[TransferPiece], story: list[str]) -> None:
        self.pieces = pieces
        self.story = story
        self.groups = list[TransferGroup]()
        self.closed = asyncio.Event()
        self.gone = asyncio.Event()
        self.published = list[int]()
        self.fails: TopdError | None = None

    async def meet_engines(self) -> tuple[str, int]:
        return "host", 7

    async def open_sender(
        self, transport: str, group: TransferGroup, timeout_s: float
    ) -> None:
        assert (transport, timeout_s) == ("nccl", DEADLINE_S)
        self.groups.append(group)
        self.closed.clear()
        self.gone.clear()

    async def next_piece(self, *, is_first: bool) -> TransferPiece | None:
        if is_first:
            self.left = list(self.pieces)
        elif not self.pieces[0].is_read_first:
            self.story.append("broadcast")
            if self.fails is not None:
                raise self.fails
            if self.gone.is_set():  # as NCCL: it waits for a member that is no more
                await self.closed.wait()
                raise ActorFailedError("learner[0]: the group is closed")
        if not self.left:
            return None
        self.story.append("piece")
        return self.left.pop(0)

    async def close_sender(self) -> None:
        self.closed.set()

    async def publish(self, policy_version: int) -> PublishedWeights:
        self.published.append(policy_version)
        return PublishedWeights(policy_version, (), Span(0.0, 0.0))

    async def follow_teacher(self) -> None:
        """The teacher's head is the student's."""


class Engine:
    """Loads pieces; `fate` decides what becomes of it at its first piece."""

    def __init__(self, name: str, learners: Learners, fate: str = "") -> None:
        self.name = name
        self.num_starts = 1
        self.offsets = list[int]()
        self.holds = 0
        self.losses = list[tuple[str, bool]]()
        self._learners = learners
        self._fate = fate

    def forget_weights(self) -> None:
        """Nothing is held."""

    async def join(self, group: TransferGroup, rank_offset: int) -> None:
        if self._fate == "never joins":
            await asyncio.Event().wait()
        assert rank_offset < group.world_size
        self.offsets.append(rank_offset)

    def take_piece(self, policy_version: int, piece: TransferPiece) -> Any:
        self._learners.story.append(f"told {self.name}")
        return self._taken(policy_version, piece)

    async def _taken(self, policy_version: int, piece: TransferPiece) -> Span:
        fate, self._fate = self._fate, ""
        if fate:
            self._learners.gone.set()
        if fate == "dies":
            raise ActorDiedError(f"{self.name} died in take_piece: killed")
        if fate == "hangs":
            await asyncio.Event().wait()
        if fate == "follows":  # fails because another member is gone
            await asyncio.sleep(1.0)
            raise ActorFailedError(f"{self.name} failed in take_piece: reset by peer")
        await asyncio.sleep(0.5)
        self._learners.story.append(f"loaded {self.name}")
        if piece.is_last:
            self.holds = policy_version
        return Span(0.0, 0.5)

    async def update(self, weights: PublishedWeights) -> Span:
        self.holds = weights.policy_version
        return Span(0.0, 0.0)

    async def replace(
        self, error: TopdError, weights: PublishedWeights, *, is_loss: bool
    ) -> Span:
        self.losses.append((str(error), is_loss))
        self.num_starts += 1
        self.holds = weights.policy_version
        return Span(0.0, 0.0)


class Fixture:
    """A learner, two engines of two workers each, and the sync over them."""

    def __init__(
        self,
        fates: tuple[str, str] = ("", ""),
        pieces: list[TransferPiece] | None = None,
    ) -> None:
        self.story = list[str]()
        self.learners = Learners(pieces or [BROADCAST], self.story)
        self.engines = [
            Engine(f"rollout[{index}]", self.learners, fate)
            for index, fate in enumerate(fates)
        ]
        self.failures = list[tuple[int, str]]()
        ends: Any = DirectEnds(
            transport="nccl", learners=self.learners, engines=self.engines, workers=2
        )
        fleet: Any = type("Fleet", (), {})()
        fleet.rollouts = self.engines
        fleet.learners = self.learners
        fleet.decoders = []
        fleet.takes_turns = frozenset()
        self.sync = WeightSync(
            fleet,
            DirectTransfer(ends, WeightsConfig(deadline_s=DEADLINE_S)),
            on_failure=lambda *failure: self.failures.append(failure),
        )

    @property
    def holds(self) -> list[int]:
        return [engine.holds for engine in self.engines]


def run(made: Callable[[], Fixture], *versions: int) -> Fixture:
    async def go() -> Fixture:
        fixture = made()
        for version in versions:
            await fixture.sync.publish(version)
            await fixture.sync.done()
        return fixture

    return run_in_virtual_time(go())


def test_a_broadcast_begins_when_every_engine_has_been_told() -> None:
    fixture = run(Fixture, 1)
    assert fixture.story[:4] == [
        "piece",
        "told rollout[0]",
        "told rollout[1]",
        "broadcast",
    ]
    assert fixture.holds == [1, 1]
    assert fixture.learners.published == []


def test_a_buffer_is_filled_again_only_when_every_engine_has_read_it() -> None:
    fixture = run(lambda: Fixture(pieces=ipc_pieces(2)), 4)
    each = ["piece", "told rollout[0]", "told rollout[1]"]
    each += ["loaded rollout[0]", "loaded rollout[1]"]
    assert fixture.story == each * 3
    assert fixture.holds == [4, 4]


def test_the_group_is_opened_once_and_every_worker_has_a_rank_in_it() -> None:
    fixture = run(Fixture, 1, 2, 3)
    (group,) = fixture.learners.groups
    assert group.world_size == 5
    assert [engine.offsets for engine in fixture.engines] == [[1], [3]]
    assert fixture.holds == [3, 3]


def test_an_engine_that_was_replaced_between_two_versions_joins_a_new_group() -> None:
    async def go() -> Fixture:
        fixture = Fixture()
        await fixture.sync.publish(1)
        fixture.engines[1].num_starts += 1
        await fixture.sync.publish(2)
        return fixture

    fixture = run_in_virtual_time(go())
    assert len(fixture.learners.groups) == 2
    assert fixture.holds == [2, 2]


@pytest.mark.parametrize("other", ["follows", "hangs", ""])
def test_a_lost_engine_is_replaced_and_gets_the_version_through_the_store(
    other: str,
) -> None:
    """The other one may fail with it, may wait for ever, or may have all of it."""
    fixture = run(lambda: Fixture(("dies", other)), 5, 6)
    assert fixture.holds == [6, 6]
    assert fixture.learners.published == [5]
    ((version, reason),) = fixture.failures
    assert version == 5
    assert "rollout[0] died in take_piece" in reason
    lost, beside = (engine.losses for engine in fixture.engines)
    assert [is_loss for _, is_loss in lost] == [True]
    assert [is_loss for _, is_loss in beside] == ([False] if other else [])
    assert len(fixture.learners.groups) == 2  # the next version had a new group


@pytest.mark.parametrize("fate", ["hangs", "never joins"])
def test_a_transfer_that_hangs_ends_at_its_deadline_and_says_who_owed_it(
    fate: str,
) -> None:
    fixture = run(lambda: Fixture(("", fate)), 1)
    assert fixture.holds == [1, 1]
    ((_, reason),) = fixture.failures
    assert "rollout[1] owed its part of a transfer of weights for 30 s" in reason
    assert "weights.deadline_s" in reason
    assert [is_loss for _, is_loss in fixture.engines[1].losses] == [True]


@pytest.mark.parametrize("fate", ["follows", "hangs"])
def test_a_sender_that_fails_with_all_engines_alive_ends_the_run(fate: str) -> None:
    """Every further transfer would end like it, and would replace all engines."""

    def made() -> Fixture:
        fixture = Fixture((fate, fate))
        fixture.learners.fails = ActorFailedError("learner[0] failed in next_piece: x")
        return fixture

    with pytest.raises(ActorFailedError, match="next_piece"):
        run(made, 1)


def test_a_version_that_the_teacher_takes_too_goes_through_the_store() -> None:
    async def go() -> Fixture:
        fixture = Fixture()
        await fixture.sync.publish(1, to_teachers=True)
        await fixture.sync.done()
        return fixture

    fixture = run_in_virtual_time(go())
    assert fixture.learners.published == [1]
    assert fixture.holds == [1, 1]


def test_works_of_a_direct_transfer_are_reported_as_those_of_the_store() -> None:
    async def go() -> list[tuple[str, str, int]]:
        fixture = Fixture()
        await fixture.sync.publish(3)
        _, works = await fixture.sync.done()
        return [(work.actor, work.what, work.step or 0) for work in works]

    assert run_in_virtual_time(go()) == [
        ("learner[0]", "publish", 3),
        ("rollout[0]", "update", 3),
        ("rollout[1]", "update", 3),
    ]
