"""A step that was begun: its chunks, the order in which they are learned, and its
books.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from topd_ray.config import Config
from topd_ray.errors import TopdError
from topd_ray.records.receipts import (
    ContinueReceipt,
    LearnReceipt,
    ProbeReceipt,
    RewriteReceipt,
    RolloutReceipt,
    ScoreReceipt,
    Span,
)
from topd_ray.records.timeline import Work
from topd_ray.windows import RecentDistances


@dataclass(slots=True)
class StepBooks:
    """Receipts of one step, in the order (c, e) of its chunks."""

    rollouts: list[RolloutReceipt] = field(default_factory=list)
    rewrites: list[RewriteReceipt] = field(default_factory=list)
    scores: list[ScoreReceipt] = field(default_factory=list)
    continued: list[ContinueReceipt] = field(default_factory=list)
    probes: list[ProbeReceipt] = field(default_factory=list)
    learned: list[list[LearnReceipt]] = field(default_factory=list)
    """One list of ranks a chunk."""
    learned_ids: list[tuple[str, ...]] = field(default_factory=list)
    """Rollouts of each of those chunks."""
    works: list[Work] = field(default_factory=list)
    """Every call of every actor."""
    complaints: list[str] = field(default_factory=list)
    """Why its update was skipped."""


@dataclass(slots=True)
class Chunk:
    """A chunk on its way; `turn` is its place in the learner's queue."""

    turn: int
    engine: int
    payload: Any
    names: tuple[str, ...]
    """Rollouts still in it."""
    rollout: RolloutReceipt
    rewrite: RewriteReceipt | None = None
    score: ScoreReceipt | None = None
    continued: ContinueReceipt | None = None
    probe: ProbeReceipt | None = None
    learned: list[LearnReceipt] = field(default_factory=list)
    """One a rank; none where every rollout was dropped."""


class OpenStep:
    """What the chunks of one step share: room, turns, and the line of the verdict
    (D7).
    """

    def __init__(
        self,
        config: Config,
        number: int,
        rollout_ids: tuple[str, ...],
        *,
        threshold: float | None,
        num_chunks: Sequence[int],
    ) -> None:
        """`threshold` is the line as far as it is known now."""
        order = sorted(
            (c, e) for e, count in enumerate(num_chunks) for c in range(count)
        )
        self.number, self.rollout_ids = number, rollout_ids
        self.task: asyncio.Task[None] | None = None
        self._turns = {place: turn for turn, place in enumerate(order)}
        self._probes, self._divergence = config.uses_probes, config.windows.divergence
        self._threshold: float | None = None
        self._may_learn = False
        self._next = 0
        self._changed = asyncio.Condition()
        self._judged: dict[int, Chunk] = {}
        self._works: list[Work] = []
        # A first step with no line yet needs every probe before the learner takes any
        # chunk; fresh windows are decoded when the engine is done with all rollouts.
        everything = (
            config.uses_probes and threshold is None
        ) or config.probe.student == "resample"
        # Room is kept for each engine: were it shared, a fast one could fill it with
        # chunks that wait for the turn of a slow one's first.
        self.room_per_engine = max(
            1,
            (
                len(order)
                if everything
                else config.cluster.max_chunks_in_flight // len(num_chunks)
            ),
        )

    def turn(self, chunk: int, engine: int) -> int:
        """Place of an engine's chunk in the learner's queue."""
        return self._turns[chunk, engine]

    def note(
        self, who: str, what: str, chunk: Chunk | None, span: Span, num_tokens: int = 0
    ) -> None:
        """Keep when an actor worked on a chunk, or on the step as a whole."""
        self._works.append(
            Work(
                actor=who,
                what=what,
                step=self.number + 1,
                chunk=None if chunk is None else chunk.turn,
                began_s=span.began_s,
                ended_s=span.ended_s,
                num_tokens=num_tokens,
            )
        )

    def abandon(self) -> None:
        """Wait for nothing more of it."""
        if self.task is not None:
            self.task.cancel()

    async def let_learn(self, threshold: float | None) -> None:
        """All steps before this one are done, and the line is what they left (None: no
        line yet).

        The step then draws a line of its own, when it has its last probe.
        """
        async with self._changed:
            self._may_learn = True
            self._threshold = threshold if self._probes else 0.0
            self._draw_line()
            self._changed.notify_all()

    async def judged(self, chunk: Chunk) -> float:
        """Note the chunk; wait for its turn; return the line above which a window
        diverges.
        """
        async with self._changed:
            self._judged[chunk.turn] = chunk
            self._draw_line()
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: self._threshold is not None and self._next == chunk.turn
            )
            self._next += 1
            self._changed.notify_all()
            assert self._threshold is not None
            return self._threshold

    def _draw_line(self) -> None:
        complete = len(self._judged) == len(self._turns)
        if self._may_learn and self._threshold is None and complete:
            self._threshold = self._first_line()

    @property
    def threshold(self) -> float | None:
        """The verdict's line; None before it is known."""
        return self._threshold

    def chunks(self) -> list[Chunk]:
        """All chunks, in the learner's order; only when the step is done."""
        if len(self._judged) != len(self._turns):
            raise TopdError(
                f"{len(self._turns) - len(self._judged)} chunks were never learned"
            )
        return [self._judged[turn] for turn in range(len(self._turns))]

    def books(self) -> StepBooks:
        """All receipts, in order; only when the step is done."""
        chunks = self.chunks()
        return StepBooks(
            rollouts=[one.rollout for one in chunks],
            rewrites=[one.rewrite for one in chunks if one.rewrite is not None],
            scores=[one.score for one in chunks if one.score is not None],
            continued=[one.continued for one in chunks if one.continued is not None],
            probes=[one.probe for one in chunks if one.probe is not None],
            learned=[one.learned for one in chunks if one.learned],
            learned_ids=[one.names for one in chunks if one.learned],
            works=self._works,
        )

    def _first_line(self) -> float:
        """The line by this step's own distances; infinite where there was nothing to
        probe.
        """
        recent = RecentDistances(self._divergence)
        for chunk in self._judged.values():
            recent.add(chunk.probe.threshold_distances if chunk.probe else ())
        line = recent.threshold()
        return float("inf") if line is None else line
