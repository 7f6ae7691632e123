"""Stop a rollout at its fork while it is decoded, and let the teacher go on at once.

    engine ─beginnings─> [waiting] ─> read_ahead ─forks─┬─> cut: the engine decodes no
                          those that came meanwhile      │   further
                          go together                    └─> take_over: the teacher goes
                                                             on beside both

A beginning is read when the teacher is done with those before it. When a chunk of
finished rollouts comes, all its beginnings have come before. Which forks are found
early depends on the timing; what is trained does not: a fork that was not found early
is found when the chunk is scored. A first step that has to find its own threshold
(`takeover.verdict: surprise`) stops no rollout: it needs them all for that.
"""

import asyncio
from collections.abc import Mapping, Sequence

from topd_ray.actors.protocols import (
    ReadAhead,
    Ref,
    RolloutHandle,
    TakenOver,
    TeacherHandle,
)
from topd_ray.driver.step import EarlyTakeover, StepInFlight
from topd_ray.messages import PartialRollout

_MOST_TAKEOVERS = 16
"""Calls of one engine's takeovers at a time: a teacher serves others beside them."""


class EarlyStop:
    """Follows the rollouts of one engine in one step, with one teacher."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        step: StepInFlight,
        engine: RolloutHandle,
        teacher: TeacherHandle,
        answers: Mapping[str, str],
    ) -> None:
        """Tasks are of `group`, which the step waits for. `answers`: the right answer
        by rollout id, where it is known.
        """
        self._group = group
        self._step = step
        self._engine = engine
        self._teacher = teacher
        self._answers = answers
        self._waiting: list[Ref[list[PartialRollout]]] = []
        self._last: asyncio.Task[None] | None = None
        self._taking: dict[str, asyncio.Task[dict[str, EarlyTakeover]]] = {}
        self._room = asyncio.Semaphore(_MOST_TAKEOVERS)

    def add(self, partials: Ref[list[PartialRollout]]) -> None:
        """Take beginnings that the engine has sent."""
        if not self._waiting:
            self._last = self._group.create_task(self._read(self._last))
        self._waiting.append(partials)

    async def reader(self) -> TeacherHandle:
        """Return the teacher, when it has read all beginnings that have come so far."""
        if self._last is not None:
            await self._last
        return self._teacher

    async def taken_over(self, rollout_ids: Sequence[str]) -> dict[str, EarlyTakeover]:
        """Return the takeovers that were begun early, of a chunk that was read."""
        early = {}
        for name in rollout_ids:
            if name in self._taking:
                early[name] = (await self._taking[name])[name]
        return early

    async def _read(self, before: asyncio.Task[None] | None) -> None:
        """Read all that came while the teacher was at the beginnings before."""
        if before is not None:
            await before
        threshold = await self._step.fork_threshold()
        partials = self._waiting
        self._waiting = []
        read = await self._teacher.read_ahead(
            partials, frozenset(self._taking), threshold, self._step.log
        )
        self._step.reads.append(read.receipt)
        if read.receipt.forks:
            taking = self._group.create_task(self._take_over(read))
            self._taking |= {name: taking for name, _ in read.receipt.forks}
            # the token at the fork stays: a rollout that was cut says where
            await self._engine.cut({n: fork + 1 for n, fork in read.receipt.forks})

    async def _take_over(self, read: ReadAhead) -> dict[str, EarlyTakeover]:
        names = [name for name, _ in read.receipt.forks]
        async with self._room:
            taken: TakenOver = await self._teacher.take_over(
                read.forks,
                (),
                {name: self._answers[name] for name in names if name in self._answers},
                0.0,
                len(names),
                self._step.log,
            )
        self._step.early_takeovers.append(taken.receipt)
        lengths = taken.receipt.num_sequence_tokens
        return {
            name: EarlyTakeover(takeover, length)
            for name, takeover, length in zip(
                names, taken.takeovers, lengths, strict=True
            )
        }


__all__ = ["EarlyStop"]
