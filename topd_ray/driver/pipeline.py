"""Optimizer steps as streams of chunks.

    rollout engine e ─chunk c─> [room] ─> teacher ─> prober ─> [its turn] ─> ranks
      one stream an engine     at most n  free one   free one   (c, e) in    each its
      of finished rollouts     chunks     of a pool  of a pool  order        own share

| who waits | for what | what wakes it |
|---|---|---|
| a finished chunk | room (`cluster.max_chunks_in_flight`) | a chunk that is learned |
| a chunk | a free teacher, a free prober | the call that ends there |
| a probed chunk | its turn, in the order (c, e) | the chunk before it |
| a run's first chunks | the threshold of the verdict (D7) | the step's last probe |
| a step begun ahead | the steps before it | `learn` |
| with roles that take turns: the teacher | every chunk of the step | the last chunk |
| with roles that take turns: the learner | every chunk, judged | the last probe |
| the optimizer | every chunk of the step | the last `accumulate` |

The teacher scores a chunk and, where probe workers have no engine, continues from its
candidates too: the same actor, which has the prefixes in its cache. With `trajectory:
rewrite` the chunk is rewritten before the teacher reads it, and the probe is left out.
With `trajectory: takeover` the teacher that scored it goes on from each fork, which is
known when the chunk is scored, or, by D_OT, when the threshold of the step is.
With `takeover.stride` its teacher reads a rollout while it is decoded
(`early_stop.py`).
With `probe.student: resample` the chunk goes back to its rollout engine between teacher
and prober; an engine answers when all its rollouts are out, so all chunks have room
then.

A chunk goes on as soon as its stage is done with it, so rollouts that finish early are
scored, probed and accumulated while others still decode. The driver sees references and
receipts, never an array.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from topd_ray.actors.protocols import (
    Fleet,
    PartialRollouts,
    Ref,
    RolloutChunk,
    TeacherHandle,
)
from topd_ray.config import Config
from topd_ray.driver.dealing import deal_to_engines
from topd_ray.driver.early_stop import EarlyStop
from topd_ray.driver.health import complaints, refuse_mismatch
from topd_ray.driver.ledger import Ledger, Stage
from topd_ray.driver.stages import Stages, rank_shares
from topd_ray.driver.step import Chunk, EarlyTakeover, Round, StepInFlight
from topd_ray.driver.turns import RoleTurns
from topd_ray.errors import TopdError
from topd_ray.messages import CandidateSet, Prompt, RolloutRequest, StepReport
from topd_ray.records.receipts import LearnedRound, StepReceipts
from topd_ray.windows import RecentDistances


class Pipeline:
    """Streams the chunks of optimizer steps through the actors of a fleet."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        ledger: Ledger,
        recent: RecentDistances,
        turns: RoleTurns | None = None,
    ) -> None:
        """Take the actors, and what steps leave behind.

        Args:
            config: The run's config.
            fleet: The actors.
            ledger: What has become of each rollout.
            recent: The values that a step's threshold is taken from.
            turns: Of the roles, together with the `WeightSync`; by default those of the
                fleet.
        """
        self.turns = turns or RoleTurns(fleet)
        self._config = config
        self._fleet = fleet
        self._ledger = ledger
        self._recent = recent
        self._stages = Stages(config, fleet)
        self._is_first_update = True

    def begin(
        self, prompts: Sequence[Prompt], *, step: int, policy_version: int
    ) -> StepInFlight:
        """Submit the rollouts of a step (counted from 0) to the rollout engines.

        Its chunks are scored and probed as they come, and wait for `learn` before the
        learner takes them. What is submitted to a rollout engine after this call is
        served after the step's rollouts.
        """
        requests = [
            RolloutRequest(prompt=prompt, sample_index=sample)
            for prompt in prompts
            for sample in range(self._config.rollout.samples_per_prompt)
        ]
        blocks = deal_to_engines(requests, len(self._fleet.rollouts))
        chunk_size = self._config.rollout.chunk_size
        opened = StepInFlight(
            self._config,
            step,
            tuple(request.rollout_id for request in requests),
            threshold=self._recent.threshold(),
            num_chunks=[-(-len(block) // chunk_size) for block in blocks],
            roles_wait=self.turns.are_taken,
        )
        # Before any engine is asked: a rollout that comes back must be known.
        self._ledger.dispatch(opened.rollout_ids)
        streams = [
            engine.roll_out(
                block,
                policy_version=policy_version,
                room=opened.room_per_engine,
                stride=self._config.takeover.stride if opened.reads_ahead else None,
            )
            for engine, block in zip(self._fleet.rollouts, blocks, strict=True)
        ]

        async def follow_all() -> None:
            async with _tasks() as group:
                for engine, stream in enumerate(streams):
                    group.create_task(
                        self._follow_engine(group, opened, engine, stream, prompts)
                    )

        opened.task = asyncio.ensure_future(follow_all())
        return opened

    async def learn(self, step: StepInFlight) -> bool:
        """Let a begun step learn; return True when every chunk is accumulated.

        Steps learn in the order in which they were begun. Raises the named error of the
        first chunk that fails. Cancelling it leaves the step to `abandon`.
        """
        step.let_learn(self._recent.threshold())
        assert step.task is not None
        # A stop cancels this wait alone; `abandon` ends the tasks in its own order.
        await asyncio.shield(step.task)
        if not step.rounds:
            raise TopdError(
                f"step {step.number + 1}: every rollout was dropped"
                f" ({dict(self._ledger.dropped)} so far); nothing to learn from: loosen"
                f" {'takeover' if self._config.uses_takeovers else 'rewrite'}.keep, or"
                " raise prompts.per_step"
            )
        return True

    async def update(self, step: StepInFlight) -> tuple[StepReport, StepReceipts]:
        """Update the student with a learned step.

        A step whose receipts give reason for complaint updates nothing (`health`). The
        first step of a session is on-policy, so a difference between engine and learner
        cannot be staleness there: it ends the run.
        """
        receipts = step.receipts()
        if self._is_first_update:
            refuse_mismatch(self._config, receipts)
        self._is_first_update = False
        receipts.complaints = complaints(self._config, receipts)
        report = await self._fleet.learners.step(
            skip=bool(receipts.complaints), log=step.log
        )
        self._ledger.close_step(step.rollout_ids)
        # After the update: the threshold of a step never depends on its own distances,
        # but for the first step.
        self._recent.add(step.values_for_later())
        return report, receipts

    async def abandon(self, step: StepInFlight) -> None:
        """Stop a begun step and take its rollouts back, as if it had never begun."""
        await step.abandon()
        self._ledger.take_back(step.rollout_ids)

    async def _follow_engine(
        self,
        group: asyncio.TaskGroup,
        step: StepInFlight,
        engine: int,
        stream: AsyncIterator[RolloutChunk | PartialRollouts],
        prompts: Sequence[Prompt],
    ) -> None:
        """Start a task for each chunk that an engine finishes."""
        room = asyncio.Semaphore(step.room_per_engine)
        index = 0
        early = self._early_stop(group, step, engine, prompts)
        async for sent in stream:
            if isinstance(sent, PartialRollouts):
                assert early is not None, "only takeover.stride asks for beginnings"
                early.add(sent.partials)
                continue
            self._ledger.advance(sent.receipt.rollout_ids, Stage.ROLLED_OUT)
            # Waiting here pauses the stream, and so the engine (backpressure).
            await room.acquire()
            chunk = step.chunk(index, engine, sent.rollouts, sent.receipt)
            index += 1
            task = group.create_task(
                self._follow_chunk(step, chunk, engine, prompts, early)
            )
            task.add_done_callback(lambda _: room.release())

    def _early_stop(
        self,
        group: asyncio.TaskGroup,
        step: StepInFlight,
        engine: int,
        prompts: Sequence[Prompt],
    ) -> EarlyStop | None:
        if not step.reads_ahead:
            return None
        teachers = self._fleet.teachers
        return EarlyStop(
            group,
            step,
            self._fleet.rollouts[engine],
            teachers[engine % len(teachers)],
            self._stages.answers(prompts),
        )

    async def _follow_chunk(
        self,
        step: StepInFlight,
        chunk: Chunk,
        engine: int,
        prompts: Sequence[Prompt],
        early: EarlyStop | None,
    ) -> None:
        """Take a chunk through the stages that the method asks for, to the learner."""
        if self.turns.has("teacher"):
            await step.before_teacher.reach(self.turns, "teacher")
        if self._config.uses_rewrites:
            dropped = await self._stages.rewrite(chunk, prompts)
            self._ledger.advance([*chunk.rollout_ids, *dropped], Stage.REWRITTEN)
            for name, reason in dropped.items():
                self._ledger.drop([name], reason=reason)
        if chunk.rollout_ids:
            reader = await early.reader() if early else None
            teacher, candidates = await self._score_and_probe(chunk, engine, reader)
            if self._config.uses_takeovers:
                made = await early.taken_over(chunk.rollout_ids) if early else {}
                await self._take_over(step, chunk, teacher, candidates, prompts, made)
        threshold = await step.judged(chunk)
        if self.turns.has("learner"):
            await step.before_learner.reach(self.turns, "learner")
        await step.its_turn(chunk)
        learned = step.join_round(chunk)
        if learned is not None:
            await self._accumulate(step, learned, threshold)

    async def _score_and_probe(
        self, chunk: Chunk, engine: int, reader: TeacherHandle | None
    ) -> tuple[TeacherHandle, Ref[list[CandidateSet]]]:
        teacher, candidates = await self._stages.score(chunk, reader)
        self._ledger.advance(chunk.rollout_ids, Stage.SCORED)
        if self._config.uses_probes:
            rollouts = self._fleet.rollouts[engine]
            await self._stages.probe(chunk, teacher, candidates, rollouts)
            self._ledger.advance(chunk.rollout_ids, Stage.PROBED)
        return teacher, candidates

    async def _take_over(
        self,
        step: StepInFlight,
        chunk: Chunk,
        teacher: TeacherHandle,
        candidates: Ref[list[CandidateSet]],
        prompts: Sequence[Prompt],
        early: Mapping[str, EarlyTakeover],
    ) -> None:
        # A fork that no other token decides waits for no step.
        waits = self._config.needs_threshold
        threshold = await step.judged(chunk) if waits else 0.0
        dropped = await self._stages.take_over(
            chunk,
            teacher,
            candidates,
            self._stages.answers(prompts),
            threshold,
            early,
        )
        self._ledger.advance([*chunk.rollout_ids, *dropped], Stage.TAKEN_OVER)
        for name, reason in dropped.items():
            self._ledger.drop([name], reason=reason)

    async def _accumulate(
        self, step: StepInFlight, learned: Round, threshold: float
    ) -> None:
        """Deal a round to the ranks, each its own share, and wait until all have it."""
        learner = self._config.learner
        shares = rank_shares(
            learned.chunks,
            learner.num_ranks,
            sequence_parallel=learner.sequence_parallel,
        )
        receipts = await self._fleet.learners.accumulate(
            shares, threshold, learned.chunks[-1].log
        )
        names = tuple(share.rollout_ids for share in shares)
        step.rounds.append(LearnedRound(names, receipts))
        for share in shares[:: learner.sequence_parallel]:
            self._ledger.advance(share.rollout_ids, Stage.CONSUMED)


@asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a task group that fails with its first task's own error, not with a
    group.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
