"""One optimizer step under way: its chunks, their order, and the threshold they share.

    chunk probed ──> judged(chunk): waits for the threshold
                       └─> its_turn(chunk): waits for the chunks before it
                             └─> those that complete a round are dealt to the ranks

The turns are fixed when the step begins, so floating-point sums keep their order and a
run repeats, whichever chunk is probed first.
"""

import asyncio
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from topd_ray.actors.protocols import Ref
from topd_ray.config import Config
from topd_ray.driver.turns import Barrier
from topd_ray.errors import TopdError
from topd_ray.messages import ProbeSet, Rollout, ScoredRollout, Takeover
from topd_ray.records.receipts import (
    ContinueReceipt,
    LearnedRound,
    ProbeReceipt,
    ReadReceipt,
    RewriteReceipt,
    RolloutReceipt,
    ScoreReceipt,
    Span,
    StepReceipts,
    TakeoverReceipt,
)
from topd_ray.records.timeline import Work
from topd_ray.windows import distance_quantile


@dataclass(slots=True)
class ChunkLog:
    """A `WorkLog` that files the calls on one chunk, or on the step as a whole."""

    step: int
    """Optimizer steps are counted from 1 in metrics and traces."""
    chunk: int | None
    works: list[Work]

    def worked(self, actor: str, what: str, span: Span, num_tokens: int = 0) -> None:
        """Keep when an actor worked, and on what."""
        self.works.append(
            Work(
                actor=actor,
                what=what,
                step=self.step,
                chunk=self.chunk,
                began_s=span.began_s,
                ended_s=span.ended_s,
                num_tokens=num_tokens,
            )
        )


@dataclass(frozen=True, slots=True)
class EarlyTakeover:
    """A takeover that was made while the student still decoded other rollouts."""

    takeover: Ref[Takeover | None]
    num_sequence_tokens: int
    """Prompt and trained response."""


@dataclass(slots=True)
class Chunk:
    """Rollouts that go through the stages together."""

    turn: int
    """Place in the learner's queue of the step."""
    rollouts: Ref[list[Rollout]]
    rollout_ids: tuple[str, ...]
    """Rollouts still in the chunk: unwanted rewrites leave it."""
    log: ChunkLog
    rollout: RolloutReceipt
    rewrite: RewriteReceipt | None = None
    score: ScoreReceipt | None = None
    continued: ContinueReceipt | None = None
    probe: ProbeReceipt | None = None
    takeover: TakeoverReceipt | None = None
    scored: tuple[Ref[ScoredRollout], ...] = ()
    """One a rollout, in the order of `rollout_ids`."""
    probe_sets: tuple[Ref[ProbeSet], ...] = ()
    """Likewise; empty where nothing is probed."""
    takeovers: tuple[Ref[Takeover | None], ...] = ()
    """Likewise; empty where the teacher takes nothing over."""

    @property
    def threshold_values(self) -> tuple[float, ...]:
        """What the chunk says about the threshold: distances, or surprises."""
        if self.probe is not None:
            return self.probe.threshold_distances
        return () if self.score is None else self.score.threshold_values

    def put_early(self, early: Mapping[str, EarlyTakeover]) -> None:
        """Put takeovers that were made before into their places."""
        assert self.takeover is not None
        takeovers = list(self.takeovers)
        lengths = list(self.takeover.num_sequence_tokens)
        for index, name in enumerate(self.rollout_ids):
            if name in early:
                takeovers[index] = early[name].takeover
                lengths[index] = early[name].num_sequence_tokens
        self.takeovers = tuple(takeovers)
        self.takeover = replace(self.takeover, num_sequence_tokens=tuple(lengths))

    def leave_out(self, names: Container[str]) -> None:
        """Take scored rollouts out of the chunk."""
        kept = [i for i, name in enumerate(self.rollout_ids) if name not in names]
        self.rollout_ids = tuple(self.rollout_ids[i] for i in kept)
        self.scored = tuple(self.scored[i] for i in kept)
        self.probe_sets = tuple(self.probe_sets[i] for i in kept if self.probe_sets)
        self.takeovers = tuple(self.takeovers[i] for i in kept if self.takeovers)


@dataclass(slots=True)
class Round:
    """Chunks that the learner takes in one call, so that no rank is left without
    work.
    """

    chunks: list[Chunk] = field(default_factory=list)

    @property
    def num_rollouts(self) -> int:
        """Rollouts of all its chunks."""
        return sum(len(chunk.rollout_ids) for chunk in self.chunks)


class StepInFlight:
    """What the chunks of one step share: room, turns, threshold (D7), rounds."""

    def __init__(
        self,
        config: Config,
        number: int,
        rollout_ids: tuple[str, ...],
        *,
        threshold: float | None,
        num_chunks: Sequence[int],
        roles_wait: bool = False,
    ) -> None:
        """Begin a step.

        Args:
            config: The run's config.
            number: Of the step, from 0.
            rollout_ids: All its rollouts.
            threshold: The step's threshold as far as it is known by now.
            num_chunks: The chunks that each engine will send.
            roles_wait: Whether chunks wait for each other between two roles.
        """
        order = sorted(
            (c, e) for e, count in enumerate(num_chunks) for c in range(count)
        )
        self.number = number
        self.rollout_ids = rollout_ids
        self.task: asyncio.Task[None] | None = None
        self.works = list[Work]()
        self.rounds = list[LearnedRound]()
        self.reads = list[ReadReceipt]()
        self.early_takeovers = list[TakeoverReceipt]()
        self._config = config
        self._turns = {place: turn for turn, place in enumerate(order)}
        self._threshold: float | None = None
        self._may_learn = False
        self._threshold_known = asyncio.Event()
        self._turn_open = [asyncio.Event() for _ in order]
        self.before_teacher = Barrier(len(order))
        self.before_learner = Barrier(len(order))
        self._judged: dict[int, Chunk] = {}
        self._gathering = Round()
        self._num_to_come = len(rollout_ids)
        # A first step without a threshold needs every probe before the learner takes
        # any chunk, and fresh windows are decoded when the engine is done with all
        # rollouts: every chunk then has to wait somewhere.
        self._finds_threshold = config.needs_threshold and threshold is None
        all_at_once = (
            self._finds_threshold or config.probe.student == "resample" or roles_wait
        )
        # Room is kept for each engine: were it shared, a fast engine could fill it with
        # chunks that wait for the turn of a slow engine's first chunk.
        self.room_per_engine = max(
            1,
            (
                len(order)
                if all_at_once
                else config.cluster.max_chunks_in_flight // len(num_chunks)
            ),
        )

    @property
    def log(self) -> ChunkLog:
        """The log of calls that are of no chunk."""
        return ChunkLog(self.number + 1, None, self.works)

    @property
    def threshold(self) -> float | None:
        """D_OT above which a window diverges, or nats of surprise above which a token
        is an error; None before it is known.
        """
        return self._threshold

    @property
    def reads_ahead(self) -> bool:
        """Whether rollouts are stopped at their forks: a step that takes its threshold
        from its own rollouts needs them whole.
        """
        return self._config.takeover.stride is not None and not self._finds_threshold

    async def fork_threshold(self) -> float:
        """Return the threshold of forks when it is known.

        0 where no other token decides a fork: that waits for no step.
        """
        if not self._config.needs_threshold:
            return 0.0
        await self._threshold_known.wait()
        assert self._threshold is not None
        return self._threshold

    def chunk(
        self,
        index: int,
        engine: int,
        rollouts: Ref[list[Rollout]],
        receipt: RolloutReceipt,
    ) -> Chunk:
        """Return the chunk that an engine sent as its `index`-th."""
        turn = self._turns[index, engine]
        log = ChunkLog(self.number + 1, turn, self.works)
        log.worked(f"rollout[{engine}]", "roll_out", receipt.span, receipt.num_tokens)
        return Chunk(turn, rollouts, receipt.rollout_ids, log, receipt)

    async def abandon(self) -> None:
        """Stop following the step's chunks; return when none of its tasks runs."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    def let_learn(self, threshold: float | None) -> None:
        """Let the chunks go to the learner: all steps before this one are done.

        `threshold` is what those steps left. None: no distance is known yet, and the
        step takes its threshold from its own probes, when it has the last of them.
        """
        self._may_learn = True
        self._threshold = threshold if self._config.needs_threshold else 0.0
        self._settle_threshold()
        if self._turn_open:
            self._turn_open[0].set()

    async def judged(self, chunk: Chunk) -> float:
        """File a chunk that is probed, and return the threshold when it is known."""
        self._judged[chunk.turn] = chunk
        self._settle_threshold()
        await self._threshold_known.wait()
        assert self._threshold is not None
        return self._threshold

    async def its_turn(self, chunk: Chunk) -> None:
        """Wait until the learner has every chunk before this one."""
        await self._turn_open[chunk.turn].wait()
        if chunk.turn + 1 < len(self._turn_open):
            self._turn_open[chunk.turn + 1].set()

    def join_round(self, chunk: Chunk) -> Round | None:
        """Add a chunk, in its turn, to the round that is gathered.

        Returns the round once it has a rollout for every rank, or the step has no
        further chunk; None while it waits for more, or where there is nothing to learn
        from. It also waits for a rest that would be too small to be a round.
        """
        if chunk.rollout_ids:
            self._gathering.chunks.append(chunk)
        self._num_to_come -= len(chunk.rollout.rollout_ids)
        is_last = chunk.turn + 1 == len(self._turns)
        num_rollouts = self._gathering.num_rollouts
        fewest = min(num_rollouts, self._num_to_come or num_rollouts)
        if fewest < self._config.learner.data_parallel and not is_last:
            return None
        complete = self._gathering
        self._gathering = Round()
        return complete if num_rollouts else None

    def chunks(self) -> list[Chunk]:
        """Return all chunks in the learner's order. Raises TopdError before the end."""
        if len(self._judged) != len(self._turns):
            missing = len(self._turns) - len(self._judged)
            raise TopdError(f"{missing} chunks were never learned")
        return [self._judged[turn] for turn in range(len(self._turns))]

    def values_for_later(self) -> list[float]:
        """Return what the step says about later thresholds: distances, or surprises.

        The surprises are in the order of the step's rollouts, whichever chunk a rollout
        came in.
        """
        chunks = self.chunks()
        if self._config.uses_probes:
            return list(chain.from_iterable(c.threshold_values for c in chunks))
        judged = dict(
            chain.from_iterable(c.takeover.judged_values for c in chunks if c.takeover)
        )
        return list(
            chain.from_iterable(judged.get(name, ()) for name in self.rollout_ids)
        )

    def receipts(self) -> StepReceipts:
        """Return all receipts, in order; only when the step is done."""
        chunks = self.chunks()
        return StepReceipts(
            rollouts=[chunk.rollout for chunk in chunks],
            rewrites=[c.rewrite for c in chunks if c.rewrite is not None],
            scores=[c.score for c in chunks if c.score is not None],
            continued=[c.continued for c in chunks if c.continued is not None],
            probes=[c.probe for c in chunks if c.probe is not None],
            reads=self.reads,
            takeovers=[
                *self.early_takeovers,
                *(c.takeover for c in chunks if c.takeover is not None),
            ],
            rounds=self.rounds,
            works=self.works,
        )

    def _settle_threshold(self) -> None:
        if not self._may_learn:
            return
        complete = len(self._judged) == len(self._turns)
        if self._threshold is None and complete:
            # All distances of the step count here, more than `divergence.history` of
            # them too: which of them came last must not matter.
            values = chain.from_iterable(c.threshold_values for c in self.chunks())
            found = distance_quantile(self._config.threshold_rule, values)
            self._threshold = math.inf if found is None else found
        if self._threshold is not None:
            self._threshold_known.set()
