"""Typed handles of actors: name, deadline, retry after a loss, time span.

A handle speaks to one `Process`: a Ray actor, or a worker in this process. What the
driver may call stands in protocols.py; the method names that Ray wants as attributes of
an untyped object appear here and nowhere else.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from topd_ray.actors.calls import Calls
from topd_ray.actors.process import Process, Reference, Stream
from topd_ray.actors.protocols import (
    Continued,
    PartialRollouts,
    Probed,
    PublishedWeights,
    ReadAhead,
    Ref,
    Resampled,
    Rewritten,
    RolloutChunk,
    Scored,
    TakenOver,
    WorkLog,
)
from topd_ray.actors.replacement import LOST, Replacement
from topd_ray.engines.protocols import TransferGroup, TransferPiece, WakePart
from topd_ray.errors import ActorFailedError, TopdError
from topd_ray.evaluation import Accuracy
from topd_ray.messages import (
    CandidateSet,
    Ints,
    PartialRollout,
    ProbeSet,
    Prompt,
    Rollout,
    RolloutRequest,
)
from topd_ray.records.receipts import Receipt, RolloutReceipt, Span

R = TypeVar("R", bound=Receipt)
PublishAgain = Callable[[int], Awaitable[PublishedWeights | None]]
"""Policy version -> its weights in the object store; None where they are gone."""


class _Submitted:
    """A call on its way, and the process that owes its answer."""

    def __init__(self, process: Process, references: Sequence[Reference]) -> None:
        self.process = process
        self.references = references


class Handle:
    """One actor that can be replaced; calls go to the process that has its place."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Process],
        calls: Calls,
        replacement: Replacement,
    ) -> None:
        """`name`: e.g. `teacher[0]`, for errors and metrics. `start()` makes a
        process.
        """
        self.name = name
        self._start = start
        self._calls = calls
        self._replacement = replacement
        self._process = start()
        self.num_starts = 1
        """Processes that have had this place."""
        self._replacing = asyncio.Lock()
        self._weights: PublishedWeights | None = None
        self._clock_offset_s = 0.0

    async def ready(self) -> None:
        """Wait until the process has loaded its model; compare its clock with ours."""
        (loaded,) = self._process.call("ready")
        await self._calls.start(self.name, "ready", loaded)
        # Monotonic clocks of two machines have nothing in common but their rate.
        asked_s = time.monotonic()
        (clock,) = self._process.call("clock")
        its_s: float = await self._calls.call(self.name, "clock", clock)
        self._clock_offset_s = (asked_s + time.monotonic()) / 2 - its_s

    def update(self, weights: PublishedWeights) -> Awaitable[Span]:
        """Submit new weights now; await the span of their load.

        An actor lost meanwhile is replaced, and its successor loads the same weights.
        """
        self._weights = weights
        submitted = self._submit("update", weights.policy_version, *weights.buckets)
        return self._updated(submitted)

    async def sleep(self) -> None:
        """See `SleepingHandle`."""
        await self._call("sleep")

    async def wake(self, part: WakePart = "all") -> None:
        """See `SleepingHandle`."""
        await self._call("wake", part)

    def forget_weights(self) -> None:
        """Release the references to the newest weights, before others are published."""
        self._weights = None

    async def pin(self, core: int) -> None:
        """Bind the process to one core (benchmarks do this)."""
        await self._call("pin", core)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    async def _updated(self, submitted: _Submitted) -> Span:
        began_s = time.monotonic()
        try:
            span: Span = await self._calls.call(
                self.name, "update", submitted.references[0]
            )
        except LOST as error:
            await self._replace(submitted.process, error)  # which loads the weights
            return Span.since(began_s)
        return self._by_our_clock(span)

    def _submit(
        self, method: str, *arguments: object, num_returns: int = 1
    ) -> _Submitted:
        process = self._process
        references = process.call(method, *arguments, num_returns=num_returns)
        return _Submitted(process, references)

    async def _call(
        self, method: str, *arguments: object, num_returns: int = 1
    ) -> tuple[Any, ...]:
        """Return the references of a call, the last of them awaited."""
        submitted = self._submit(method, *arguments, num_returns=num_returns)
        return await self._answered(submitted, method, *arguments)

    async def _answered(
        self, submitted: _Submitted, method: str, *arguments: object
    ) -> tuple[Any, ...]:
        """Await the last reference of a call; make the call again where it was lost."""
        num_returns = len(submitted.references)
        while True:
            *values, receipt = submitted.references
            try:
                answer = await self._calls.call(self.name, method, receipt)
            except LOST as error:
                await self._replace(submitted.process, error)
            else:
                return (*values, answer)
            submitted = self._submit(method, *arguments, num_returns=num_returns)

    async def _replace(self, lost: Process, error: TopdError) -> None:
        """Replace a lost process and return when its successor is ready.

        Does nothing where another call has replaced it already: one death fails all the
        calls that were under way. Raises `error` where no replacement is granted.
        """
        async with self._replacing:
            if self._process is not lost:
                return
            while True:
                await self._replacement.grant(self.name, error)
                weights = await self._newest_weights(error)
                try:
                    await self._start_anew(weights)
                except LOST as another:  # the successor is lost before it is ready
                    error = another
                else:
                    return

    async def _newest_weights(self, error: TopdError) -> PublishedWeights | None:
        """Return what a successor must load; None: the weights of its start.

        Raises `error`, the loss, where these weights are nowhere any more.
        """
        del error
        return self._weights

    async def _start_anew(self, weights: PublishedWeights | None) -> None:
        """Start a new process, wait until it is ready, and give it the weights."""
        self._process.kill()  # a silent process still holds its memory
        self._process = self._start()
        self.num_starts += 1
        await self.ready()
        if weights is not None:
            (loaded,) = self._process.call(
                "update", weights.policy_version, *weights.buckets
            )
            await self._calls.call(self.name, "update", loaded)

    def _noted(self, method: str, receipt: R, log: WorkLog) -> R:
        """Tell `log` of a call, and return its receipt with times of our own clock."""
        span = self._by_our_clock(receipt.span)
        log.worked(self.name, method, span, receipt.num_tokens)
        return replace(receipt, span=span)

    def _by_our_clock(self, span: Span) -> Span:
        return span.shifted(self._clock_offset_s)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a rollout engine was asked for."""

    requests: tuple[RolloutRequest, ...]
    policy_version: int
    room: int
    stride: int | None


class RolloutActorHandle(Handle):
    """A `RolloutHandle` over a process."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Process],
        calls: Calls,
        replacement: Replacement,
        *,
        replaceable: bool,
        publish_again: PublishAgain | None = None,
    ) -> None:
        """Take what every handle takes, and what becomes of a lost engine.

        Args:
            name: e.g. `rollout[0]`.
            start: Makes a process.
            calls: Deadlines.
            replacement: Grants replacements.
            replaceable: Whether a lost engine's rollouts may be decoded again. With
                `rollout.max_staleness` above 0 they may not: its queue held requests
                and weights of several versions, in an order that is gone with it.
            publish_again: Puts a version that came directly into the object store, for
                a successor; None where every version comes through the store.
        """
        super().__init__(name, start, calls, replacement)
        self._replaceable = replaceable
        self._publish_again = publish_again
        self._direct_version: int | None = None
        self._cuts: dict[str, int] = {}

    def roll_out(
        self,
        requests: Sequence[RolloutRequest],
        *,
        policy_version: int,
        room: int,
        stride: int | None = None,
    ) -> AsyncIterator[RolloutChunk | PartialRollouts]:
        """See `RolloutHandle`. A lost engine's missing rollouts are decoded again."""
        asked = _Asked(tuple(requests), policy_version, room, stride)
        process = self._process
        return self._followed(process, self._open(process, asked), asked)

    async def cut(self, cuts: Mapping[str, int]) -> None:
        """See `RolloutHandle`. A lost engine's successor is told with its requests."""
        self._cuts.update(cuts)
        told = self._process.interject("cut", cuts)
        with contextlib.suppress(*LOST):  # the stream of its chunks finds out too
            await self._calls.call(self.name, "cut", told)

    def join(self, group: TransferGroup, rank_offset: int) -> Awaitable[None]:
        """See `ReceivingHandle`."""
        (joined,) = self._process.call("join", group, rank_offset)
        return self._calls.call(self.name, "join", joined)

    def take_piece(self, policy_version: int, piece: TransferPiece) -> Awaitable[Span]:
        """See `ReceivingHandle`."""
        self._weights = None
        self._direct_version = policy_version
        (taken,) = self._process.call("take_piece", policy_version, piece)
        return self._taken(taken)

    async def _taken(self, reference: Reference) -> Span:
        span: Span = await self._calls.call(self.name, "take_piece", reference)
        return self._by_our_clock(span)

    async def replace(
        self, error: TopdError, weights: PublishedWeights, *, is_loss: bool
    ) -> Span:
        """See `ReceivingHandle`."""
        began_s = time.monotonic()
        self._weights = weights
        lost = self._process
        if is_loss:
            await self._replace(lost, error)
        else:
            async with self._replacing:
                self._replacement.note(self.name, error)
                await self._start_anew(weights)
        return Span.since(began_s)

    async def _newest_weights(self, error: TopdError) -> PublishedWeights | None:
        if self._weights is None and self._direct_version is not None:
            assert self._publish_again is not None, "weights come through the store"
            self._weights = await self._publish_again(self._direct_version)
            if self._weights is None:
                raise error
        return self._weights

    async def resample(
        self, candidates: Ref[list[CandidateSet]], policy_version: int, log: WorkLog
    ) -> Resampled:
        """See `RolloutHandle`."""
        windows, receipt = await self._call(
            "resample", candidates, policy_version, num_returns=2
        )
        return Resampled(windows, self._noted("resample", receipt, log))

    def evaluate(self, problems: Sequence[Prompt]) -> Awaitable[Accuracy]:
        """See `RolloutHandle`."""
        return self._evaluated(self._submit("evaluate", problems), problems)

    async def _evaluated(
        self, submitted: _Submitted, problems: Sequence[Prompt]
    ) -> Accuracy:
        accuracy: Accuracy
        (accuracy,) = await self._answered(submitted, "evaluate", problems)
        return accuracy

    def _open(
        self, process: Process, asked: _Asked, done: frozenset[str] = frozenset()
    ) -> Stream:
        names = {request.rollout_id for request in asked.requests}
        self._cuts = {name: cut for name, cut in self._cuts.items() if name in names}
        # a chunk is two items, payload and receipt; one chunk more is being taken
        return process.stream(
            "roll_out",
            asked.requests,
            asked.policy_version,
            done,
            self._cuts,
            asked.stride,
            room=2 * (asked.room + 1),
        )

    async def _followed(
        self, process: Process, stream: Stream, asked: _Asked
    ) -> AsyncIterator[RolloutChunk | PartialRollouts]:
        done = set[str]()
        while True:
            try:
                async for sent in self._sent(stream):
                    if isinstance(sent, RolloutChunk):
                        done.update(sent.receipt.rollout_ids)
                    yield sent
            except LOST as error:
                if not self._replaceable:
                    raise
                await self._replace(process, error)
            else:
                return
            process = self._process
            stream = self._open(process, asked, frozenset(done))

    async def _sent(
        self, stream: Stream
    ) -> AsyncIterator[RolloutChunk | PartialRollouts]:
        """Yield pairs of payload reference and receipt from a streaming call."""
        references = aiter(stream)
        while True:
            try:
                rollouts = await self._calls.call(
                    self.name, "roll_out", anext(references)
                )
            except StopAsyncIteration:
                return
            try:
                second = await self._calls.call(
                    self.name, "roll_out", anext(references)
                )
            except StopAsyncIteration:
                # a lone last reference carries the error that ended the generator
                await self._calls.call(self.name, "roll_out", rollouts)
                raise ActorFailedError(
                    f"{self.name} sent a chunk without its receipt"
                ) from None
            receipt: Receipt = await self._calls.call(self.name, "roll_out", second)
            if isinstance(receipt, RolloutReceipt):
                span = self._by_our_clock(receipt.span)
                yield RolloutChunk(rollouts, replace(receipt, span=span))
            else:
                yield PartialRollouts(rollouts)


class DecoderActorHandle(Handle):
    """A `DecoderHandle` over a process."""

    async def continue_from(
        self, candidates: Ref[list[CandidateSet]], log: WorkLog
    ) -> Continued:
        """See `DecoderHandle`."""
        windows, receipt = await self._call("continue_from", candidates, num_returns=2)
        return Continued(windows, self._noted("continue_from", receipt, log))

    async def rewrite(
        self, rollouts: Ref[list[Rollout]], prompts: Sequence[Prompt], log: WorkLog
    ) -> Rewritten:
        """See `DecoderHandle`."""
        rewrites, receipt = await self._call(
            "rewrite", rollouts, prompts, num_returns=2
        )
        return Rewritten(rewrites, self._noted("rewrite", receipt, log))


class TeacherActorHandle(DecoderActorHandle):
    """A `TeacherHandle` over a process."""

    async def score(
        self, rollouts: Ref[list[Rollout]], num_rollouts: int, log: WorkLog
    ) -> Scored:
        """See `TeacherHandle`."""
        *scored, candidates, receipt = await self._call(
            "score", rollouts, num_returns=num_rollouts + 2
        )
        return Scored(tuple(scored), candidates, self._noted("score", receipt, log))

    async def read_ahead(
        self,
        partials: Sequence[Ref[list[PartialRollout]]],
        known: frozenset[str],
        threshold: float,
        log: WorkLog,
    ) -> ReadAhead:
        """See `TeacherHandle`."""
        forks, receipt = await self._call(
            "read_ahead", known, threshold, *partials, num_returns=2
        )
        return ReadAhead(forks, self._noted("read_ahead", receipt, log))

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
        """See `TeacherHandle`."""
        # Ray resolves references among the arguments themselves, not inside a list.
        *takeovers, receipt = await self._call(
            "take_over",
            candidates,
            answers,
            threshold,
            known,
            *probe_sets,
            num_returns=num_rollouts + 1,
        )
        return TakenOver(tuple(takeovers), self._noted("take_over", receipt, log))


class ProberActorHandle(DecoderActorHandle):
    """A `ProberHandle` over a process."""

    async def probe(
        self,
        candidates: Ref[list[CandidateSet]],
        teacher_windows: Ref[list[Ints]],
        student_windows: Ref[list[Ints]] | None,
        num_rollouts: int,
        log: WorkLog,
    ) -> Probed:
        """See `ProberHandle`."""
        *probe_sets, receipt = await self._call(
            "probe",
            candidates,
            teacher_windows,
            student_windows,
            num_returns=num_rollouts + 1,
        )
        return Probed(tuple(probe_sets), self._noted("probe", receipt, log))
