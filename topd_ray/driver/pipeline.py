"""Optimizer steps as streams of chunks. Who waits for whom, and what wakes them:

    rollout engine e ─chunk c─> [room] ─> teacher ─> prober ─> [its turn] ─> learner
      one stream an engine     at most n  free one   free one   (c, e) in    every
      of finished rollouts     chunks     of a pool  of a pool  order        rank

The teacher scores a chunk and, where probe workers have no engine of their own,
continues from its candidates too: the same actor, which has the prefixes in its cache.
With `trajectory: rewrite` the chunk is rewritten before the teacher reads it, and the
probe is left out. With `probe.student: resample` the chunk goes back to its rollout
engine between teacher and prober; an engine answers when all its rollouts are out, so
all chunks have room in flight then.

A chunk goes on as soon as its stage is done with it, so rollouts that finish early are
scored, probed and accumulated while others still decode. Three things are held back on
purpose. Chunks enter the learner in the order (c, e), whichever probe came back first:
floating-point sums keep their order and a run repeats. Where no D_OT has been seen yet
(the first step), the learner waits for the step's last probe, because the verdict needs
a line to judge by. And the chunks of a step that was begun ahead
(`rollout.max_staleness`) wait for the steps before it: `begin` starts a step, `finish`
lets it learn and ends it at the one real barrier, the optimizer. The driver sees
references and receipts, never an array.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from topd_ray.actors.calls import Caller
from topd_ray.actors.fleet import Fleet, holder
from topd_ray.actors.pool import Pool
from topd_ray.actors.replacement import LOST, Revival
from topd_ray.config import Config
from topd_ray.driver.health import complaints
from topd_ray.driver.ledger import Ledger, Stage
from topd_ray.driver.step import Chunk, OpenStep, StepBooks
from topd_ray.errors import ActorFailedError, TopdError
from topd_ray.messages import Prompt, RolloutRequest, StepReport, rollout_requests
from topd_ray.records.receipts import RolloutReceipt, Span
from topd_ray.windows import RecentDistances


class Pipeline:
    """Runs steps over a fleet."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        caller: Caller,
        ledger: Ledger,
        recent: RecentDistances,
        revival: Revival,
    ) -> None:
        self._config, self._fleet, self._caller, self._revival = (
            config,
            fleet,
            caller,
            revival,
        )
        self._ledger, self._recent = ledger, recent
        self._teachers = Pool("teacher", fleet.teachers)
        self._probers = Pool("prober", fleet.probers)
        # A slot of its own for what a teacher writes: reading goes on beside it.
        self._writers = (
            self._probers if config.probe_engine else Pool("teacher", fleet.teachers)
        )

    def begin(
        self, prompts: Sequence[Prompt], *, step: int, policy_version: int
    ) -> OpenStep:
        """Send the prompts of a step (counted from 0) to the rollout engines.

        Its chunks are scored and probed as they come, and wait for `finish` to be
        learned. What is asked of a rollout engine from here on comes after the step's
        rollouts.
        """
        requests = rollout_requests(prompts, self._config.rollout.samples_per_prompt)
        shares = _dealt(requests, len(self._fleet.rollouts))
        chunk_size = self._config.rollout.chunk_size
        opened = OpenStep(
            self._config,
            step,
            tuple(request.rollout_id for request in requests),
            threshold=self._recent.threshold(),
            num_chunks=[-(-len(share) // chunk_size) for share in shares],
        )
        self._ledger.dispatch(opened.rollout_ids)
        asks = [
            _Ask(
                self._fleet.rollouts[engine],
                share,
                policy_version,
                opened.room_per_engine,
            )
            for engine, share in enumerate(shares)
        ]
        streams = [ask.send() for ask in asks]

        async def followed() -> None:
            async with _tasks() as group:
                for engine, (ask, stream) in enumerate(zip(asks, streams, strict=True)):
                    group.create_task(self._stream(group, opened, engine, ask, stream))

        opened.task = asyncio.ensure_future(followed())
        return opened

    async def finish(self, step: OpenStep) -> tuple[StepReport, StepBooks]:
        """Let a begun step learn, and update the student. Steps are finished in order.

        A step whose receipts give reason for complaint updates nothing (`health`). Any
        failure ends it with a named error.
        """
        await step.let_learn(self._recent.threshold())
        assert step.task is not None
        await step.task
        if not any(chunk.learned for chunk in step.chunks()):
            raise TopdError(
                f"step {step.number + 1}: every rollout was dropped"
                f" ({dict(self._ledger.dropped)} so far); nothing to learn from: loosen"
                " rewrite.keep, or raise prompts.per_step"
            )
        books = step.books()
        books.complaints = complaints(self._config, books)
        report = await self._optimize(step, skip=bool(books.complaints))
        self._ledger.close_step(step.rollout_ids)
        self._recent.add(d for one in books.probes for d in one.threshold_distances)
        return report, books

    async def _stream(
        self,
        group: asyncio.TaskGroup,
        step: OpenStep,
        engine: int,
        ask: "_Ask",
        stream: Any,
    ) -> None:
        """Follow one rollout engine; each chunk it finishes becomes a task of its
        own.
        """
        who, room, index = (
            f"rollout[{engine}]",
            asyncio.Semaphore(step.room_per_engine),
            0,
        )
        while True:
            try:
                async for payload, receipt in self._chunks(stream, who):
                    ask.done.update(receipt.rollout_ids)
                    self._ledger.advance(receipt.rollout_ids, Stage.ROLLED_OUT)
                    await room.acquire()
                    turn, index = step.turn(index, engine), index + 1
                    chunk = Chunk(turn, engine, payload, receipt.rollout_ids, receipt)
                    step.note(who, "roll_out", chunk, receipt.span, receipt.num_tokens)
                    task = group.create_task(self._follow(step, chunk, ask.prompts))
                    task.add_done_callback(lambda _: room.release())
                return
            except LOST as error:
                if self._config.rollout.max_staleness:
                    raise  # its queue held weights and prompts of several versions
                await self._revival.revive(ask.actor, ask.handle, error)
                stream = ask.send()

    async def _chunks(
        self, stream: Any, who: str
    ) -> AsyncIterator[tuple[Any, RolloutReceipt]]:
        """Pairs of payload reference and receipt from a streaming generator."""
        references = aiter(stream)
        while True:
            try:
                payload = await self._caller.call(who, "roll_out", anext(references))
            except StopAsyncIteration:
                return
            try:
                receipt = await self._caller.call(who, "roll_out", anext(references))
            except (
                StopAsyncIteration
            ):  # a lone last reference carries the generator's error
                await self._caller.call(who, "roll_out", payload)
                raise ActorFailedError(
                    f"{who} sent a chunk without its receipt"
                ) from None
            yield payload, await self._caller.call(who, "roll_out", receipt)

    async def _follow(
        self, step: OpenStep, chunk: Chunk, prompts: Sequence[Prompt]
    ) -> None:
        """Rewrite, score, probe (each where the method asks for it), wait for the turn,
        learn.
        """
        if self._config.uses_rewrites:
            await self._rewrite(step, chunk, prompts)
        scored, probes = (
            await self._look_at(step, chunk) if chunk.names else (None, None)
        )
        threshold = await step.judged(chunk)
        if not chunk.names:
            return
        accumulated = [
            actor.accumulate.remote(scored, probes, threshold)
            for actor in self._fleet.learners
        ]
        chunk.learned = await self._ranks("accumulate", accumulated)
        for rank, receipt in enumerate(chunk.learned):
            tokens = receipt.sums.num_tokens
            step.note(f"learner[{rank}]", "accumulate", chunk, receipt.span, tokens)
        self._ledger.advance(chunk.names, Stage.CONSUMED)

    async def _rewrite(
        self, step: OpenStep, chunk: Chunk, prompts: Sequence[Prompt]
    ) -> None:
        """The teacher's rewrites take the rollouts' place; unwanted outcomes are
        dropped.
        """
        async with self._writers.free() as (who, writer):
            chunk.payload, rewrite = await self._revival.asked(
                who,
                writer,
                "rewrite",
                lambda on: on.rewrite.options(num_returns=2).remote(
                    chunk.payload, prompts
                ),
            )
        step.note(who, "rewrite", chunk, rewrite.span, rewrite.num_tokens)
        chunk.rewrite = rewrite
        self._ledger.advance(chunk.names, Stage.REWRITTEN)
        for name, reason in rewrite.dropped:
            self._ledger.drop([name], reason=reason)
        gone = {name for name, _ in rewrite.dropped}
        chunk.names = tuple(name for name in chunk.names if name not in gone)

    async def _look_at(self, step: OpenStep, chunk: Chunk) -> tuple[Any, Any]:
        """References of the scored rollouts and of their probes (None without)."""
        async with self._teachers.free() as (who, teacher):
            scored, found, chunk.score = await self._revival.asked(
                who,
                teacher,
                "score",
                lambda on: on.score.options(num_returns=3).remote(chunk.payload),
            )
        step.note(who, "score", chunk, chunk.score.span, chunk.score.num_tokens)
        self._ledger.advance(chunk.names, Stage.SCORED)
        if not self._config.uses_probes:
            return scored, None
        fresh = await self._resampled(step, chunk, found)
        if self._config.probe_engine:
            async with self._probers.free() as (who, prober):
                windows = await self._continued(step, chunk, who, prober, found)
                probes = await self._probed(
                    step, chunk, who, prober, found, windows, fresh
                )
        else:  # the teacher that scored has the prefixes in its cache
            windows = await self._continued(step, chunk, who, teacher, found)
            async with self._probers.free() as (who, prober):
                probes = await self._probed(
                    step, chunk, who, prober, found, windows, fresh
                )
        self._ledger.advance(chunk.names, Stage.PROBED)
        return scored, probes

    async def _resampled(self, step: OpenStep, chunk: Chunk, found: Any) -> Any:
        """Reference of the student's fresh windows, where D3 asks for them."""
        if self._config.probe.student != "resample":
            return None
        who, engine = f"rollout[{chunk.engine}]", self._fleet.rollouts[chunk.engine]
        version = chunk.rollout.policy_version
        fresh, receipt = await self._revival.asked(
            who,
            engine,
            "resample",
            lambda on: on.resample.options(num_returns=2).remote(
                found, policy_version=version
            ),
        )
        step.note(who, "resample", chunk, receipt.span)
        return fresh

    async def _continued(
        self, step: OpenStep, chunk: Chunk, who: str, decoder: Any, found: Any
    ) -> Any:
        """Reference of the teacher's continuations."""
        windows, receipt = await self._revival.asked(
            who,
            decoder,
            "continue_from",
            lambda on: on.continue_from.options(num_returns=2).remote(found),
        )
        chunk.continued = receipt
        step.note(who, "continue_from", chunk, receipt.span, receipt.num_tokens)
        return windows

    async def _probed(
        self,
        step: OpenStep,
        chunk: Chunk,
        who: str,
        prober: Any,
        found: Any,
        windows: Any,
        fresh: Any,
    ) -> Any:
        """Reference of the probes."""
        probes, receipt = await self._revival.asked(
            who,
            prober,
            "probe",
            lambda on: on.probe.options(num_returns=2).remote(found, windows, fresh),
        )
        chunk.probe = receipt
        step.note(who, "probe", chunk, receipt.span)
        return probes

    async def _optimize(self, step: OpenStep, *, skip: bool) -> StepReport:
        began_s = time.time()
        started = [actor.step.remote(skip=skip) for actor in self._fleet.learners]
        report: StepReport = (await self._ranks("step", started))[0]
        for rank in range(len(self._fleet.learners)):
            step.note(f"learner[{rank}]", "step", None, Span.since(began_s))
        return report

    async def _ranks(self, what: str, references: Sequence[Any]) -> list[Any]:
        """Wait for the same call of every learner rank."""
        return await self._caller.all(
            [
                self._caller.call(f"learner[{rank}]", what, reference)
                for rank, reference in enumerate(references)
            ]
        )


@dataclass(slots=True)
class _Ask:
    """The share of a step that one rollout engine was asked for, to ask again where it
    is lost.
    """

    actor: Any
    requests: Sequence[RolloutRequest]
    policy_version: int
    room: int
    handle: Any = None
    """Who was asked last."""
    done: set[str] = field(default_factory=set)
    """Rollouts that have come."""

    def send(self) -> Any:
        """The stream of chunks of what has not come yet."""
        self.handle = holder(self.actor)
        streaming = self.handle.roll_out.options(
            num_returns="streaming",
            _generator_backpressure_num_objects=2 * (self.room + 1),
        )
        return streaming.remote(
            self.requests, policy_version=self.policy_version, done=frozenset(self.done)
        )

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts behind the requests, each once."""
        by_position = {
            request.prompt.position: request.prompt for request in self.requests
        }
        return list(by_position.values())


def _dealt(
    requests: Sequence[RolloutRequest], num_engines: int
) -> list[list[RolloutRequest]]:
    """Return one contiguous block of requests an engine; sizes differ by at most one.

    Contiguous, because the samples of one prompt share its prefix in the cache of one
    engine.
    """
    size, num_larger = divmod(len(requests), num_engines)
    bounds = [
        engine * size + min(engine, num_larger) for engine in range(num_engines + 1)
    ]
    return [list(requests[start:end]) for start, end in pairwise(bounds)]


@asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose failure surfaces as the first task's own error, not as a group
    of them.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
