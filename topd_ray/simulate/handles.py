"""Simulated actors: the handles of actors/protocols.py, without processes or models.

Each call takes the virtual time that the rates ask for on the actor's device, and its
receipt has the counts of a real one.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import partial
from pathlib import Path

from topd_ray.actors.protocols import (
    Continued,
    Probed,
    PublishedWeights,
    RankShare,
    ReadAhead,
    Ref,
    Resampled,
    Rewritten,
    RolloutChunk,
    Scored,
    TakenOver,
    WorkLog,
)
from topd_ray.engines.protocols import WakePart
from topd_ray.errors import TopdError
from topd_ray.evaluation import Accuracy
from topd_ray.messages import (
    CandidateSet,
    Ints,
    LossSums,
    PartialRollout,
    ProbeSet,
    Prompt,
    Rollout,
    RolloutRequest,
    StepReport,
)
from topd_ray.records.receipts import (
    ContinueReceipt,
    LearnReceipt,
    ProbeReceipt,
    ResampleReceipt,
    RewriteReceipt,
    RolloutReceipt,
    ScoreReceipt,
    Span,
    TakeoverReceipt,
)
from topd_ray.simulate.lane import Lane
from topd_ray.simulate.machine import Device, Engine
from topd_ray.simulate.rates import continuous_batching
from topd_ray.simulate.world import (
    Piece,
    PieceRef,
    World,
    now_s,
    num_micro_batches,
    pieces_of,
)


class SimulatedRollout:
    """A `RolloutHandle`."""

    def __init__(self, world: World, index: int, device: Device) -> None:
        self.name = f"rollout[{index}]"
        self._world = world
        self._device = device
        self._lane = Lane(world.rates.latency_s)

    def roll_out(
        self,
        requests: Sequence[RolloutRequest],
        *,
        policy_version: int,
        room: int,
        stride: int | None = None,
    ) -> AsyncIterator[RolloutChunk]:
        """See `RolloutHandle`. The shortest rollouts come first."""
        del stride  # `World.decoded_tokens` knows it
        pieces = [self._world.piece(request.rollout_id) for request in requests]
        return self._lane.stream(lambda: self._chunks(pieces, policy_version), room + 1)

    async def cut(self, cuts: Mapping[str, int]) -> None:
        """See `RolloutHandle`. A simulated rollout ends at its fork by itself."""

    async def resample(
        self, candidates: Ref[list[CandidateSet]], policy_version: int, log: WorkLog
    ) -> Resampled:
        """See `RolloutHandle`."""
        pieces = pieces_of(candidates)
        slots = self._world.config.rollout.engine.max_num_seqs
        seconds = self._world.windows_s(self._world.rates.roll_out, pieces, slots)
        span = await self._lane.submit(lambda: _worked(self._device, seconds))
        log.worked(self.name, "resample", span)
        return Resampled(PieceRef[list[Ints]](pieces), ResampleReceipt(span=span))

    def evaluate(self, problems: Sequence[Prompt]) -> Awaitable[Accuracy]:
        """See `RolloutHandle`. Evaluations take no simulated time."""
        return self._lane.submit(_no_accuracy)

    def update(self, weights: PublishedWeights) -> Awaitable[Span]:
        """See `RolloutHandle`."""
        seconds = self._world.rates.update_s
        return self._lane.submit(lambda: _worked(self._device, seconds))

    async def sleep(self) -> None:
        """See `SleepingHandle`."""
        seconds = self._world.rates.student_move_s
        await self._lane.submit(lambda: _worked(self._device, seconds))

    async def wake(self, part: WakePart = "all") -> None:
        """See `SleepingHandle`. The cache takes no time."""
        await self.sleep()

    def kill(self) -> None:
        """See `SleepingHandle`. No simulated session is stopped."""

    def forget_weights(self) -> None:
        """See `RolloutHandle`."""

    async def _chunks(
        self, pieces: Sequence[Piece], policy_version: int
    ) -> AsyncIterator[RolloutChunk]:
        size = self._world.config.rollout.chunk_size
        began_s = now_s()
        chunk: list[Piece] = []
        left = len(pieces)
        async for piece in self._finished(pieces):
            chunk.append(piece)
            left -= 1
            if len(chunk) == size or not left:
                receipt = self._receipt(chunk, policy_version, began_s)
                yield RolloutChunk(PieceRef[list[Rollout]](chunk), receipt)
                began_s = now_s()
                chunk = []

    async def _finished(self, pieces: Sequence[Piece]) -> AsyncIterator[Piece]:
        """Yield rollouts as they end; given responses are there at once."""
        if self._world.config.objective.trajectory == "given":
            for piece in pieces:
                yield piece
            return
        rates = self._world.rates
        prompt_tokens = [piece.prompt_tokens for piece in pieces]
        await self._device.work(rates.prompt_s * sum(prompt_tokens))
        for seconds, ended in continuous_batching(
            rates.roll_out,
            [self._world.decoded_tokens(piece) for piece in pieces],
            prompt_tokens,
            slots=self._world.config.rollout.engine.max_num_seqs,
        ):
            await self._device.work(seconds)
            for index in ended:
                yield pieces[index]

    def _receipt(
        self, chunk: Sequence[Piece], policy_version: int, began_s: float
    ) -> RolloutReceipt:
        longest = self._world.config.rollout.max_response_tokens
        num_tokens = sum(self._world.decoded_tokens(piece) for piece in chunk)
        return RolloutReceipt(
            rollout_ids=tuple(piece.name for piece in chunk),
            policy_version=policy_version,
            num_tokens=num_tokens,
            num_truncated=sum(piece.num_tokens == longest for piece in chunk),
            entropy_sum=float(num_tokens),  # any number that no health limit refuses
            span=Span(began_s, now_s()),
        )


class SimulatedDecoder:
    """A `DecoderHandle`: windows and rewrites by an engine of the teacher."""

    def __init__(self, world: World, name: str, device: Device) -> None:
        self.name = name
        self._world = world
        self._engine = Engine(device)
        self._lane = Lane(world.rates.latency_s)

    async def continue_from(
        self, candidates: Ref[list[CandidateSet]], log: WorkLog
    ) -> Continued:
        """See `DecoderHandle`. Scoring goes first inside the engine."""
        pieces = pieces_of(candidates)
        rates = self._world.rates
        decode_s = self._world.windows_s(rates.continue_from, pieces, self._slots)
        seconds = self._prefix_s(pieces) + rates.continue_call_s + decode_s
        span = await self._lane.submit(lambda: self._decoded(seconds))
        num_candidates = sum(piece.num_candidates for piece in pieces)
        receipt = ContinueReceipt(
            num_tokens=round(num_candidates * self._world.workload.window_tokens),
            num_prefix_tokens=0,
            num_cached_tokens=0,
            span=span,
        )
        log.worked(self.name, "continue_from", span, receipt.num_tokens)
        return Continued(PieceRef[list[Ints]](pieces), receipt)

    async def rewrite(
        self, rollouts: Ref[list[Rollout]], prompts: Sequence[Prompt], log: WorkLog
    ) -> Rewritten:
        """See `DecoderHandle`. Every rewrite is kept, and as long as its attempt."""
        pieces = pieces_of(rollouts)
        rates = self._world.rates
        # the teacher's prompt holds the attempt, which it has not read before
        read_s = rates.score.seconds([piece.length for piece in pieces])
        decode_s = self._world.rewrites_s(rates.continue_from, pieces, self._slots)
        seconds = read_s + rates.continue_call_s + decode_s
        span = await self._lane.submit(lambda: self._decoded(seconds))
        receipt = RewriteReceipt(
            dropped=(), num_tokens=sum(piece.num_tokens for piece in pieces), span=span
        )
        log.worked(self.name, "rewrite", span, receipt.num_tokens)
        return Rewritten(PieceRef[list[Rollout]](pieces), receipt)

    def update(self, weights: PublishedWeights) -> Awaitable[Span]:
        """See `DecoderHandle`."""
        return self._lane.submit(lambda: self._read(self._world.rates.update_s))

    async def sleep(self) -> None:
        """See `SleepingHandle`."""
        await self._lane.submit(lambda: self._read(self._world.rates.teacher_move_s))

    async def wake(self, part: WakePart = "all") -> None:
        """See `SleepingHandle`."""
        await self.sleep()

    def kill(self) -> None:
        """See `SleepingHandle`. No simulated session is stopped."""

    def _prefix_s(self, pieces: Sequence[Piece]) -> float:
        """Return the seconds to read the prefixes of the candidates."""
        del pieces
        return 0.0  # a teacher that scored them has them in its cache

    @property
    def _slots(self) -> int:
        config = self._world.config
        return (config.probe_engine or config.teacher.engine).max_num_seqs

    async def _decoded(self, seconds: float) -> Span:
        began_s = now_s()
        await self._engine.work(seconds, urgent=False)
        return Span(began_s, now_s())

    async def _read(self, seconds: float) -> Span:
        began_s = now_s()
        await self._engine.work(seconds)
        return Span(began_s, now_s())


class SimulatedTeacher(SimulatedDecoder):
    """A `TeacherHandle`: it reads beside what it decodes."""

    def __init__(self, world: World, index: int, device: Device) -> None:
        super().__init__(world, f"teacher[{index}]", device)
        self._reading = Lane(world.rates.latency_s)

    async def score(
        self, rollouts: Ref[list[Rollout]], num_rollouts: int, log: WorkLog
    ) -> Scored:
        """See `TeacherHandle`."""
        pieces = pieces_of(rollouts)
        lengths = tuple(
            piece.prompt_tokens + self._world.decoded_tokens(piece) for piece in pieces
        )
        seconds = self._world.rates.score.seconds(lengths)
        span = await self._reading.submit(lambda: self._read(seconds))
        receipt = ScoreReceipt(
            num_tokens=sum(piece.num_tokens for piece in pieces),
            num_sequence_tokens=lengths,
            num_candidates=sum(piece.num_candidates for piece in pieces),
            loss_sum=0.0,
            span=span,
        )
        log.worked(self.name, "score", span, receipt.num_tokens)
        assert num_rollouts == len(pieces)
        return Scored(
            tuple(PieceRef([piece]) for piece in pieces),
            PieceRef[list[CandidateSet]](pieces),
            receipt,
        )

    async def read_ahead(
        self,
        partials: Sequence[Ref[list[PartialRollout]]],
        known: frozenset[str],
        threshold: float,
        log: WorkLog,
    ) -> ReadAhead:
        """See `TeacherHandle`. No simulated engine sends beginnings of rollouts."""
        raise TopdError("simulation: no engine sends beginnings of rollouts to read")

    async def take_over(
        self,
        candidates: Ref[list[CandidateSet]],
        probe_sets: Sequence[Ref[ProbeSet]],
        answers: Mapping[str, str],
        threshold: float,
        num_rollouts: int,
        log: WorkLog,
        known: frozenset[str] = frozenset(),
    ) -> TakenOver:
        """See `TeacherHandle`. A response keeps its length."""
        del probe_sets, answers, threshold, known
        pieces = pieces_of(candidates)
        rates = self._world.rates
        decode_s = self._world.takeovers_s(rates.continue_from, pieces, self._slots)
        seconds = rates.continue_call_s + decode_s
        span = await self._lane.submit(lambda: self._decoded(seconds))
        written = [self._world.taken_over_tokens(piece) for piece in pieces]
        num_tokens = sum(piece.num_tokens for piece in pieces)
        receipt = TakeoverReceipt(
            dropped=(),
            num_sequence_tokens=tuple(piece.length for piece in pieces),
            num_taken_over=num_rollouts,
            num_own=num_tokens - sum(written),
            num_judged=0,
            num_right=0,
            num_judged_before=0,
            num_right_before=0,
            num_prefix_tokens=0,
            num_cached_tokens=0,
            num_tokens=sum(written),
            span=span,
        )
        log.worked(self.name, "take_over", span, receipt.num_tokens)
        return TakenOver(tuple(PieceRef([piece]) for piece in pieces), receipt)


class SimulatedProber(SimulatedDecoder):
    """A `ProberHandle`. A dedicated engine has not read the rollouts' prefixes."""

    def __init__(self, world: World, index: int, device: Device) -> None:
        super().__init__(world, f"prober[{index}]", device)

    async def probe(
        self,
        candidates: Ref[list[CandidateSet]],
        teacher_windows: Ref[list[Ints]],
        student_windows: Ref[list[Ints]] | None,
        num_rollouts: int,
        log: WorkLog,
    ) -> Probed:
        """See `ProberHandle`."""
        pieces = pieces_of(candidates)
        rates = self._world.rates
        num_windows = sum(piece.num_candidates for piece in pieces)
        seconds = rates.transport_call_s + rates.transport_s * num_windows
        span = await self._lane.submit(lambda: self._read(seconds))
        log.worked(self.name, "probe", span)
        receipt = ProbeReceipt(
            distances=(0.5,) * num_windows,
            threshold_distances=(0.5,) * num_windows,
            num_windows=num_windows,
            num_unconverged=0,
            span=span,
        )
        assert num_rollouts == len(pieces)
        return Probed(tuple(PieceRef([piece]) for piece in pieces), receipt)

    def _prefix_s(self, pieces: Sequence[Piece]) -> float:
        return self._world.rates.score.seconds([piece.length for piece in pieces])


class SimulatedLearners:
    """A `LearnerGroup`. From ZeRO 2 on the ranks meet in every call."""

    def __init__(self, world: World, devices: Sequence[Device]) -> None:
        self._world = world
        self._devices = devices
        self._lanes = [Lane(world.rates.latency_s) for _ in devices]
        self._meeting = asyncio.Barrier(len(devices))
        self._step = 0

    @property
    def names(self) -> list[str]:
        """Names of the ranks, in order."""
        return [f"learner[{rank}]" for rank in range(len(self._devices))]

    async def accumulate(
        self, shares: Sequence[RankShare], threshold: float, log: WorkLog
    ) -> list[LearnReceipt]:
        """See `LearnerGroup`. All ranks run as many micro-batches as the fullest."""
        budget = self._world.config.windows.token_budget
        own: list[list[Piece]] = []
        for share in shares:
            pieces = [pieces_of(reference)[0] for reference in share.scored]
            own.append(sorted(pieces, key=lambda piece: (-piece.length, piece.name)))
        rows = [[self._world.row_tokens(piece) for piece in pieces] for pieces in own]
        batches = max(num_micro_batches(lengths, budget) for lengths in rows)
        spans = await self._every(
            [self._world.rates.learn.seconds(r, calls=batches) for r in rows],
            meets=self._world.config.learner.running_zero_stage >= 2,
        )
        receipts = []
        for name, pieces, span in zip(self.names, own, spans, strict=True):
            num_tokens = sum(piece.num_tokens for piece in pieces)
            log.worked(name, "accumulate", span, num_tokens)
            receipts.append(
                LearnReceipt(
                    num_tokens=num_tokens,
                    sums=LossSums(num_tokens=num_tokens),
                    num_divergent=0,
                    span=span,
                )
            )
        return receipts

    async def step(self, *, skip: bool, log: WorkLog) -> StepReport:
        """See `LearnerGroup`."""
        seconds = [self._world.rates.step_s] * len(self._devices)
        spans = await self._every(seconds, meets=True)
        for name, span in zip(self.names, spans, strict=True):
            log.worked(name, "step", span)
        self._step += 1
        return StepReport(
            step=self._step,
            policy_version=self._step,
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

    async def abandon_step(self) -> None:
        """See `LearnerGroup`."""

    async def sleep(self) -> None:
        """See `SleepingHandle`."""
        seconds = [self._world.rates.learner_move_s] * len(self._devices)
        await self._every(seconds, meets=False)

    async def wake(self, part: WakePart = "all") -> None:
        """See `SleepingHandle`."""
        await self.sleep()

    def kill(self) -> None:
        """See `SleepingHandle`. No simulated session is stopped."""

    async def publish(self, policy_version: int) -> PublishedWeights:
        """See `LearnerGroup`."""
        began_s = now_s()
        seconds = [self._world.rates.publish_s] * len(self._devices)
        await self._every(seconds, meets=False)
        return PublishedWeights(policy_version, (), Span(began_s, now_s()))

    async def follow_teacher(self) -> None:
        """See `LearnerGroup`."""

    async def save(self, folder: Path) -> None:
        """See `LearnerGroup`."""

    async def load(self, folder: Path) -> None:
        """See `LearnerGroup`."""

    async def save_teacher(self, folder: Path, weights: PublishedWeights) -> None:
        """See `LearnerGroup`."""

    async def load_teacher(self, folder: Path, policy_version: int) -> PublishedWeights:
        """See `LearnerGroup`."""
        return PublishedWeights(policy_version, (), Span(now_s(), now_s()))

    async def export(self, folder: Path) -> None:
        """See `LearnerGroup`."""

    async def dump(self, folder: Path, chunks: Sequence[Ref[list[Rollout]]]) -> None:
        """See `LearnerGroup`."""

    async def _every(self, seconds: Sequence[float], *, meets: bool) -> list[Span]:
        """Let every rank work so long; return the spans of their work."""
        calls = []
        for rank, lane in enumerate(self._lanes):
            work = partial(self._rank_works, rank, seconds[rank], meets)
            calls.append(lane.submit(work))
        return list(await asyncio.gather(*calls))

    async def _rank_works(self, rank: int, seconds: float, meets: bool) -> Span:
        span = await _worked(self._devices[rank], seconds)
        if meets:
            await self._meeting.wait()
        return span


async def _worked(device: Device, seconds: float) -> Span:
    began_s = now_s()
    await device.work(seconds)
    return Span(began_s, now_s())


async def _no_accuracy() -> Accuracy:
    return Accuracy()
