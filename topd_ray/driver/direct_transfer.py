"""Weights from the learner's memory into that of the engines, led by the run.

    learner: piece ──> every engine: load it ──> learner: next piece ──> ... ──> None

A broadcast is one piece: the engines are told what will come, and the learner's next
call sends it while they receive. By IPC each piece is a buffer that the engines have
read before the learner fills it again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from topd_ray.actors.calls import all_of
from topd_ray.actors.protocols import DirectEnds, PublishedWeights, ReceivingHandle
from topd_ray.actors.replacement import LOST
from topd_ray.config import WeightsConfig
from topd_ray.engines.protocols import TransferGroup, TransferPiece
from topd_ray.errors import DeadlineError, TopdError, first_line
from topd_ray.records.receipts import Span
from topd_ray.weights.plan import BUFFER_BYTES, rank_offsets

_GRACE_S = 5.0
"""Longest wait for the other calls once one of a transfer has failed."""
_LEARNER = "learner"


class TransferError(Exception):
    """A transfer that did not end well: who failed, and how far the engines came.

    No error of the run, as long as an engine was lost: it is replaced, and the others
    go on.
    """

    def __init__(
        self, errors: Mapping[str, TopdError], progress: "TransferProgress"
    ) -> None:
        super().__init__("; ".join(map(first_line, errors.values())))
        self.errors = errors
        """By the names of engines; those of the learner as `learner`."""
        self.progress = progress

    @property
    def loss(self) -> str | None:
        """Return the engine whose loss it is; None where none was lost."""
        return next(
            (
                name
                for name, error in self.errors.items()
                if name != _LEARNER and isinstance(error, LOST)
            ),
            None,
        )

    @property
    def cause(self) -> TopdError:
        """Return the error to show: of the lost engine, else of the learner."""
        name = self.loss or _LEARNER
        return self.errors.get(name) or next(iter(self.errors.values()))


class TransferProgress:
    """What the engines have loaded of a version."""

    def __init__(self, engines: tuple[str, ...]) -> None:
        self.spans: dict[str, list[Span]] = {name: [] for name in engines}
        self.touched: set[str] = set()
        """Engines that were told to load a piece."""
        self.finished: set[str] = set()
        """Engines that have loaded the last piece."""

    def loads(self) -> list[Span]:
        """Return the span of each engine's load, from its first piece to its last."""
        return [
            Span(
                min(span.began_s for span in spans), max(span.ended_s for span in spans)
            )
            for spans in self.spans.values()
        ]


class DirectTransfer:
    """Sends a version to all engines at once, within a deadline."""

    def __init__(
        self,
        ends: DirectEnds,
        weights: WeightsConfig,
        *,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._ends = ends
        self._deadline_s = weights.deadline_s
        self._buffer_bytes = buffer_bytes
        self._joined: list[int] = []

    async def send(self, policy_version: int) -> list[Span]:
        """Send a version; return the span of each engine's load, in their order.

        Raises TransferError, and closes the group: a broadcast cannot go on without
        one of its members.
        """
        calls = _TransferCalls(self._deadline_s)
        progress = TransferProgress(tuple(e.name for e in self._ends.engines))
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._open(calls)
                await self._send(calls, policy_version, progress)
        except (TopdError, TimeoutError) as error:
            self._joined = []
            await self._ends.learners.close_sender()
            late = isinstance(error, TimeoutError)
            errors = await calls.errors(is_late=late)
            raise TransferError(errors, progress) from None
        finally:
            calls.forget()
        return progress.loads()

    async def recover(self, failed: TransferError, weights: PublishedWeights) -> None:
        """Bring the engines that a transfer left without the version to it.

        An engine that was told to load a piece is replaced, also where it lives: its
        weights are of no version, and vLLM keeps its half-made update. One loss is
        counted for all.
        """
        progress = failed.progress
        unfinished = [
            engine
            for engine in self._ends.engines
            if engine.name not in progress.finished
        ]
        await all_of(
            [
                self._replace(engine, failed, weights)
                if engine.name in progress.touched or engine.name in failed.errors
                else engine.update(weights)
                for engine in unfinished
            ]
        )

    async def _replace(
        self,
        engine: ReceivingHandle,
        failed: TransferError,
        weights: PublishedWeights,
    ) -> Span:
        error = failed.errors.get(engine.name) or TopdError(str(failed))
        is_loss = engine.name == failed.loss
        return await engine.replace(error, weights, is_loss=is_loss)

    async def _open(self, calls: "_TransferCalls") -> None:
        """Let learner and engines meet, unless the same processes have met before."""
        ends = self._ends
        processes = [engine.num_starts for engine in ends.engines]
        if processes == self._joined:
            return
        calls.add(_LEARNER, ends.learners.meet_engines())
        address, port = await calls.answer(_LEARNER)
        group = TransferGroup(
            address=address,
            port=port,
            world_size=1 + ends.workers * len(ends.engines),
            buffer_bytes=self._buffer_bytes,
        )
        opening = ends.learners.open_sender(ends.transport, group, self._deadline_s)
        calls.add(_LEARNER, opening)
        offsets = rank_offsets([ends.workers] * len(ends.engines))
        for engine, offset in zip(ends.engines, offsets, strict=True):
            calls.add(engine.name, engine.join(group, offset))
        await calls.all()
        self._joined = processes

    async def _send(
        self, calls: "_TransferCalls", policy_version: int, progress: TransferProgress
    ) -> None:
        piece = await self._next_piece(calls, is_first=True)
        while piece is not None:
            for engine in self._ends.engines:
                progress.touched.add(engine.name)
                taken = engine.take_piece(policy_version, piece)
                calls.add(engine.name, _noted(taken, engine.name, piece, progress))
            if piece.is_read_first:
                await calls.all()
            piece = await self._next_piece(calls, is_first=False)
        await calls.all()

    async def _next_piece(
        self, calls: "_TransferCalls", *, is_first: bool
    ) -> TransferPiece | None:
        calls.add(_LEARNER, self._ends.learners.next_piece(is_first=is_first))
        piece: TransferPiece | None = await calls.answer(_LEARNER)
        return piece


async def _noted(
    taken: Awaitable[Span], name: str, piece: TransferPiece, progress: TransferProgress
) -> None:
    progress.spans[name].append(await taken)
    if piece.is_last:
        progress.finished.add(name)


class _TransferCalls:
    """The calls of one transfer that are under way, by the names of who owes them."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._tasks: dict[str, asyncio.Future[object]] = {}

    def add(self, name: str, call: Awaitable[object]) -> None:
        """Wait for a call."""
        self._tasks[name] = asyncio.ensure_future(call)

    async def answer(self, name: str) -> Any:
        """Return the answer to one call; raise at once what another call raises."""
        await self._until(lambda: self._tasks[name].done())
        return self._tasks.pop(name).result()

    async def all(self) -> None:
        """Wait for every call; raise the first error at once."""
        await self._until(lambda: all(task.done() for task in self._tasks.values()))
        self._tasks = {}

    async def errors(self, *, is_late: bool) -> dict[str, TopdError]:
        """Return the errors of those that failed, or have not answered.

        Where the deadline has passed, a call without an answer is a loss; else it only
        waits for the member that failed.
        """
        if self._tasks and not is_late:
            await asyncio.wait(self._tasks.values(), timeout=_GRACE_S)
        errors: dict[str, TopdError] = {}
        for name, task in self._tasks.items():
            if not task.done():
                errors[name] = self._owed(name) if is_late else _left_waiting(name)
            elif isinstance(error := task.exception(), TopdError):
                errors[name] = error
        return errors

    def forget(self) -> None:
        """Wait for nothing more."""
        for task in self._tasks.values():
            task.cancel()

    async def _until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            waited = [task for task in self._tasks.values() if not task.done()]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks.values():
                if task.done():
                    task.result()

    def _owed(self, name: str) -> TopdError:
        return DeadlineError(
            f"{name} owed its part of a transfer of weights for {self._deadline_s:g} s"
            " (weights.deadline_s); raise it where the transfer is only slow"
        )


def _left_waiting(name: str) -> TopdError:
    return TopdError(f"{name} was left waiting in a transfer of weights that failed")


__all__ = ["DirectTransfer", "TransferError", "TransferProgress"]
