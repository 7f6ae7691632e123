"""The four kinds of worker as far as the driver can tell: same methods, same receipts,
no model.

A payload is a tuple of `Piece`s, whatever stage it comes from. Each method takes the
time that the rates ask for on the worker's device, and leaves a `Work`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from topd_ray.candidates.select import num_to_pick
from topd_ray.config import Config
from topd_ray.messages import LossSums, RolloutRequest, StepReport
from topd_ray.records.receipts import (
    ContinueReceipt,
    LearnReceipt,
    ProbeReceipt,
    ResampleReceipt,
    RolloutReceipt,
    ScoreReceipt,
    Span,
)
from topd_ray.records.timeline import Work
from topd_ray.simulate.machine import Device, Engine
from topd_ray.simulate.rates import Decode, Rates, Workload, continuous_batching


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A rollout on its way: lengths only."""

    name: str
    prompt_tokens: int
    num_tokens: int
    num_candidates: int

    @property
    def length(self) -> int:
        """Prompt and response."""
        return self.prompt_tokens + self.num_tokens


Payload = Sequence[Piece]


@dataclass(slots=True, kw_only=True)
class World:
    """What all simulated workers of a run share."""

    config: Config
    rates: Rates
    workload: Workload
    works: list[Work] = field(default_factory=list)
    step: int = 0
    """Optimizer steps done."""

    def piece(self, name: str) -> Piece:
        """The rollout of this name."""
        candidates = self.config.candidates
        num_tokens = min(
            self.workload.length(name), self.config.rollout.max_response_tokens
        )
        wanted = num_to_pick(
            num_tokens,
            fraction=candidates.fraction,
            min_count=candidates.min_per_rollout,
        )
        return Piece(
            name=name,
            prompt_tokens=self.workload.prompt_tokens,
            num_tokens=num_tokens,
            num_candidates=(
                min(wanted, max(0, num_tokens - candidates.min_window + 1))
                if self.config.uses_probes
                else 0
            ),
        )

    @contextmanager
    def working(self, actor: str, what: str, num_tokens: int = 0) -> Iterator[None]:
        """Note when the actor worked."""
        began_s = _now_s()
        yield
        self.note(actor, what, began_s, num_tokens)

    def note(self, actor: str, what: str, began_s: float, num_tokens: int) -> None:
        """The actor worked from then until now."""
        self.works.append(
            Work(actor, what, self.step, None, began_s, _now_s(), num_tokens)
        )


class SimulatedRollout:
    """`RolloutWorker`."""

    def __init__(self, world: World, index: int, device: Device) -> None:
        self._world, self._name, self._device = world, f"rollout[{index}]", device

    async def roll_out(
        self, requests: Sequence[RolloutRequest], *, policy_version: int, **_: Any
    ) -> AsyncIterator[Any]:
        """Alternate chunks and their receipts, the shortest rollouts first."""
        config, rates = self._world.config.rollout, self._world.rates
        pieces = [self._world.piece(request.rollout_id) for request in requests]
        began_s, chunk, left = _now_s(), list[Piece](), len(pieces)
        await self._device.work(
            rates.prompt_s * sum(one.prompt_tokens for one in pieces)
        )
        for seconds, ended in continuous_batching(
            rates.roll_out,
            [one.num_tokens for one in pieces],
            [one.prompt_tokens for one in pieces],
            slots=config.engine.max_num_seqs,
        ):
            await self._device.work(seconds)
            for index in ended:
                chunk.append(pieces[index])
                left -= 1
                if len(chunk) == config.chunk_size or not left:
                    receipt = self._receipt(chunk, policy_version, began_s)
                    yield tuple(chunk)
                    yield receipt
                    began_s, chunk = _now_s(), []

    async def resample(
        self, found: Payload, **_: Any
    ) -> tuple[Payload, ResampleReceipt]:
        """D3 `resample`."""
        began_s, decode = _now_s(), self._world.rates.roll_out
        slots = self._world.config.rollout.engine.max_num_seqs
        with self._world.working(self._name, "resample"):
            await self._device.work(_windows_s(self._world, decode, found, slots))
        return found, ResampleReceipt(span=Span(began_s, _now_s()))

    async def update(self, *_: Any) -> Span:
        """Take new weights."""
        began_s = _now_s()
        with self._world.working(self._name, "update"):
            await self._device.work(self._world.rates.update_s)
        return Span(began_s, _now_s())

    def _receipt(
        self, chunk: Sequence[Piece], policy_version: int, began_s: float
    ) -> RolloutReceipt:
        longest = self._world.config.rollout.max_response_tokens
        num_tokens_each = tuple(piece.num_tokens for piece in chunk)
        num_tokens = sum(num_tokens_each)
        self._world.note(self._name, "roll_out", began_s, num_tokens)
        return RolloutReceipt(
            rollout_ids=tuple(one.name for one in chunk),
            policy_version=policy_version,
            num_tokens=num_tokens,
            num_tokens_each=num_tokens_each,
            num_truncated=sum(one.num_tokens == longest for one in chunk),
            entropy_sum=float(num_tokens),
            span=Span(began_s, _now_s()),
        )


class SimulatedTeacher:
    """`TeacherWorker`: it scores, and continues from what it scored unless probe
    workers do.
    """

    def __init__(self, world: World, index: int, device: Device) -> None:
        self._world, self._name, self._engine = (
            world,
            f"teacher[{index}]",
            Engine(device),
        )

    async def score(self, rollouts: Payload) -> tuple[Payload, Payload, ScoreReceipt]:
        """Scored rollouts, candidates."""
        began_s, num_tokens = _now_s(), sum(one.num_tokens for one in rollouts)
        with self._world.working(self._name, "score", num_tokens):
            seconds = self._world.rates.score.seconds([one.length for one in rollouts])
            await self._engine.work(seconds)
        receipt = ScoreReceipt(
            num_tokens=num_tokens,
            num_candidates=sum(one.num_candidates for one in rollouts),
            loss_sum=0.0,
            span=Span(began_s, _now_s()),
        )
        return rollouts, rollouts, receipt

    async def continue_from(self, found: Payload) -> tuple[Payload, ContinueReceipt]:
        """The teacher's windows, whose prefixes are in its cache; scoring goes
        first.
        """
        return await _continued(
            self._world, self._name, self._engine, found, read_s=0.0
        )


class SimulatedProber:
    """`ProbeWorker`. An engine of its own has not seen the rollouts' prefixes."""

    def __init__(self, world: World, index: int, device: Device) -> None:
        self._world, self._name, self._engine = (
            world,
            f"prober[{index}]",
            Engine(device),
        )

    async def continue_from(self, found: Payload) -> tuple[Payload, ContinueReceipt]:
        """The teacher's windows, each rollout read once."""
        read_s = self._world.rates.score.seconds([one.length for one in found])
        return await _continued(
            self._world, self._name, self._engine, found, read_s=read_s
        )

    async def probe(self, found: Payload, *_: Any) -> tuple[Payload, ProbeReceipt]:
        """Transport between continuations."""
        began_s, rates = _now_s(), self._world.rates
        windows = sum(one.num_candidates for one in found)
        with self._world.working(self._name, "probe"):
            await self._engine.work(
                rates.transport_call_s + rates.transport_s * windows
            )
        return found, ProbeReceipt(
            distances=(0.5,) * windows,
            threshold_distances=(0.5,) * windows,
            num_unconverged=0,
            span=Span(began_s, _now_s()),
        )


async def _continued(
    world: World, actor: str, engine: Engine, found: Payload, *, read_s: float
) -> tuple[Payload, ContinueReceipt]:
    began_s = _now_s()
    num_tokens = round(
        sum(one.num_candidates for one in found) * world.workload.window_tokens
    )
    slots = (world.config.probe_engine or world.config.teacher.engine).max_num_seqs
    with world.working(actor, "continue_from", num_tokens):
        decode_s = _windows_s(world, world.rates.continue_from, found, slots)
        seconds = read_s + world.rates.continue_call_s + decode_s
        await engine.work(seconds, urgent=False)
    return found, ContinueReceipt(
        num_tokens=num_tokens,
        num_prefix_tokens=0,
        num_cached_tokens=0,
        span=Span(began_s, _now_s()),
    )


class SimulatedLearner:
    """`LearnerWorker`. From ZeRO 2 on the ranks meet in every micro-batch."""

    def __init__(
        self, world: World, index: int, device: Device, meeting: asyncio.Barrier
    ) -> None:
        self._world, self._rank, self._device, self._meeting = (
            world,
            index,
            device,
            meeting,
        )

    async def accumulate(self, scored: Payload, *_: Any) -> LearnReceipt:
        """This rank's share of a chunk, dealt out as `windows.pack` does."""
        config, began_s = self._world.config, _now_s()
        ranks = config.learner.num_ranks
        order = sorted(scored, key=lambda one: (-self._row(one), one.name))
        # Rank 0's row is the longest at every place, and next-fit needs no fewer
        # batches for it.
        fullest = [self._row(one) for one in order[::ranks]]
        batches = _num_batches(fullest, config.windows.token_budget)
        own = order[self._rank :: ranks]
        num_tokens = sum(one.num_tokens for one in own)
        rows = [self._row(one) for one in own]
        seconds = self._world.rates.learn.seconds(rows, calls=batches)
        await self._work("accumulate", seconds, num_tokens)
        if config.learner.zero_stage >= 2:
            await self._meeting.wait()
        return LearnReceipt(
            sums=LossSums(num_tokens=num_tokens),
            num_divergent=0,
            span=Span(began_s, _now_s()),
        )

    async def step(self, *, skip: bool) -> StepReport:
        """The optimizer."""
        await self._meeting.wait()
        await self._work("step", self._world.rates.step_s)
        if self._rank == 0:
            self._world.step += 1
        await self._meeting.wait()
        return StepReport(
            step=self._world.step,
            policy_version=self._world.step,
            loss=0.0,
            loss_opd=0.0,
            loss_traj=0.0,
            rollout_kl=0.0,
            grad_norm=0.0,
            lr=0.0,
            num_tokens=0,
            num_window_positions=0,
            skipped=skip,
        )

    async def publish(self) -> AsyncIterator[str]:
        """One bucket."""
        await self._work("publish", self._world.rates.publish_s)
        if self._rank == 0:
            yield "weights"

    async def _work(self, what: str, seconds: float, num_tokens: int = 0) -> None:
        with self._world.working(f"learner[{self._rank}]", what, num_tokens):
            await self._device.work(seconds)

    def _row(self, piece: Piece) -> int:
        """Tokens of its row: a resampled window is a branch behind its rollout."""
        config = self._world.config
        branches = (
            config.probe.student == "resample" and config.objective.lambda_traj > 0
        )
        return piece.length + (
            config.probe.window * piece.num_candidates if branches else 0
        )


def _windows_s(world: World, decode: Decode, found: Payload, slots: int) -> float:
    """Decoding a window from every candidate; candidates lie anywhere in the
    rollout.
    """
    contexts = [
        one.prompt_tokens + one.num_tokens // 2
        for one in found
        for _ in range(one.num_candidates)
    ]
    lengths = [round(world.workload.window_tokens)] * len(contexts)
    return sum(
        s for s, _ in continuous_batching(decode, lengths, contexts, slots=slots)
    )


def _num_batches(lengths: Sequence[int], budget: int) -> int:
    """Micro-batches of at most `budget` tokens; a longer row has one of its own."""
    batches, room = 0, 0
    for length in lengths:
        if length > room:
            batches, room = batches + 1, budget
        room -= length
    return batches


def _now_s() -> float:
    return asyncio.get_running_loop().time()
