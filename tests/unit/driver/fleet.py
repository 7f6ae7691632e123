"""Actor handles without Ray: calls are coroutines with delays of the test's choosing.

A fake is right here: what is tested is who waits for whom, under timings that real
engines never show on purpose.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from topd_ray.actors.fleet import Fleet
from topd_ray.messages import LossSums, Prompt, RolloutRequest, StepReport
from topd_ray.records.receipts import (
    ContinueReceipt,
    LearnReceipt,
    ProbeReceipt,
    ResampleReceipt,
    RewriteReceipt,
    RolloutReceipt,
    ScoreReceipt,
    Span,
)

NO_TIME = Span(0.0, 0.0)
Delay = Callable[[str], float]
"""Seconds that a named piece of work takes, e.g. `score 00000001.0`."""


class Method:
    """`actor.method.options(...).remote(...)`."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call

    def options(self, **_: Any) -> "Method":
        return self


class FakeRollout:
    """Sends chunks of `size` rollouts; one call after the other, as an actor does."""

    def __init__(self, size: int, delay: Delay, fail_at: int | None = None) -> None:
        self.size = size
        self.delay = delay
        self.fail_at = fail_at
        self.roll_out, self.resample = Method(self._roll_out), Method(self._resample)
        self.rolled_out, self.one_at_a_time = asyncio.Event(), asyncio.Lock()

    def _resample(
        self, chunk: tuple[str, ...], *, policy_version: int
    ) -> tuple[Any, Any]:
        async def receipt() -> ResampleReceipt:
            await self.rolled_out.wait()
            await asyncio.sleep(self.delay(f"resample {chunk[0]}"))
            return ResampleReceipt(span=NO_TIME)

        return tuple(
            f"{policy_version}:{name}" for name in chunk
        ), asyncio.ensure_future(receipt())

    async def _roll_out(
        self,
        requests: Sequence[RolloutRequest],
        *,
        policy_version: int,
        done: frozenset[str],
    ) -> AsyncIterator[Any]:
        every = [request.rollout_id for request in requests]
        names = [name for name in every if name not in done]
        async with self.one_at_a_time:
            self.rolled_out.clear()
            async for item in self._chunks(names, policy_version):
                yield item

    async def _chunks(
        self, names: list[str], policy_version: int
    ) -> AsyncIterator[Any]:
        for index, first in enumerate(range(0, len(names), self.size)):
            chunk = tuple(names[first : first + self.size])
            await asyncio.sleep(self.delay(f"rollout {chunk[0]}"))
            if index == self.fail_at:
                yield _failing(RuntimeError("engine burst"))
                return
            yield chunk
            yield _done(
                RolloutReceipt(
                    rollout_ids=chunk,
                    policy_version=policy_version,
                    num_tokens=10 * len(chunk),
                    num_tokens_each=(10,) * len(chunk),
                    num_truncated=0,
                    entropy_sum=1.0,
                    span=NO_TIME,
                )
            )
        self.rolled_out.set()


class Writing:
    """What decodes as the teacher. Rewrites, and drops the samples in `wrong`."""

    def __init__(self, delay: Delay, wrong: frozenset[int]) -> None:
        self.delay, self.wrong = delay, wrong
        self.continue_from, self.rewrite = (
            Method(self._continue_from),
            Method(self._rewrite),
        )
        self.continued = list[str]()

    def _continue_from(self, chunk: tuple[str, ...]) -> tuple[Any, Any]:
        self.continued.extend(chunk)

        async def receipt() -> ContinueReceipt:
            await asyncio.sleep(self.delay(f"continue {chunk[0]}"))
            return ContinueReceipt(
                num_tokens=1, num_prefix_tokens=10, num_cached_tokens=9, span=NO_TIME
            )

        return tuple(f"after {name}" for name in chunk), asyncio.ensure_future(
            receipt()
        )

    def _rewrite(self, chunk: tuple[str, ...], _: Sequence[Prompt]) -> tuple[Any, Any]:
        kept = tuple(
            name for name in chunk if int(name.split(".")[1]) not in self.wrong
        )

        async def receipt() -> RewriteReceipt:
            await asyncio.sleep(self.delay(f"rewrite {chunk[0]}"))
            dropped = tuple(
                (name, "rewrite is wrong") for name in chunk if name not in kept
            )
            return RewriteReceipt(dropped=dropped, num_tokens=1, span=NO_TIME)

        return kept, asyncio.ensure_future(receipt())


class FakeTeacher(Writing):
    """Scores; every chunk brings one candidate a rollout."""

    def __init__(self, delay: Delay, wrong: frozenset[int]) -> None:
        super().__init__(delay, wrong)
        self.busy, self.most_busy, self.scored = 0, 0, list[str]()
        self.score = Method(self._score)

    def _score(self, chunk: tuple[str, ...]) -> tuple[Any, Any, Any]:
        self.scored.extend(chunk)

        async def receipt() -> ScoreReceipt:
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
            await asyncio.sleep(self.delay(f"score {chunk[0]}"))
            self.busy -= 1
            return ScoreReceipt(
                num_tokens=10, num_candidates=len(chunk), loss_sum=1.0, span=NO_TIME
            )

        return chunk, chunk, asyncio.ensure_future(receipt())


class FakeProber(Writing):
    """Probes; D_OT of a rollout is its sample index."""

    def __init__(self, delay: Delay, wrong: frozenset[int]) -> None:
        super().__init__(delay, wrong)
        self.probe = Method(self._probe)
        self.fresh: list[Any] = []

    def _probe(
        self, chunk: tuple[str, ...], windows: tuple[str, ...], fresh: Any
    ) -> tuple[Any, Any]:
        assert windows == tuple(f"after {name}" for name in chunk)
        self.fresh.append(fresh)

        async def receipt() -> ProbeReceipt:
            await asyncio.sleep(self.delay(f"probe {chunk[0]}"))
            distances = tuple(float(name.split(".")[1]) for name in chunk)
            return ProbeReceipt(
                distances=distances,
                threshold_distances=distances,
                num_unconverged=0,
                span=NO_TIME,
            )

        return chunk, asyncio.ensure_future(receipt())


class FakeLearner:
    """Notes what it was given, in order."""

    def __init__(self, delay: Delay) -> None:
        self.delay, self.taken, self.lines, self.steps = (
            delay,
            list[str](),
            list[float](),
            0,
        )
        self.steps_before = list[int]()
        self.accumulate, self.step = Method(self._accumulate), Method(self._step)

    def _accumulate(self, scored: tuple[str, ...], _: Any, line: float) -> Any:
        self.taken.extend(scored)
        self.lines.append(line)
        self.steps_before.append(self.steps)

        async def receipt() -> LearnReceipt:
            await asyncio.sleep(self.delay(f"learn {scored[0]}"))
            return LearnReceipt(
                sums=LossSums(num_tokens=1), num_divergent=0, span=NO_TIME
            )

        return asyncio.ensure_future(receipt())

    def _step(self, **_: bool) -> Any:
        self.steps += 1
        return _done(
            StepReport(
                step=self.steps,
                policy_version=self.steps,
                loss=1.0,
                loss_opd=1.0,
                loss_traj=0.0,
                rollout_kl=0.01,
                grad_norm=1.0,
                lr=1.0,
                num_tokens=1,
                num_window_positions=0,
                skipped=False,
            )
        )


def fleet(
    delay: Delay,
    *,
    engines: int = 1,
    teachers: int = 1,
    probers: int = 1,
    ranks: int = 1,
    size: int = 2,
    fail_at: int | None = None,
    wrong: frozenset[int] = frozenset(),
) -> Fleet:
    """A fleet of fakes."""
    return Fleet(
        rollouts=[FakeRollout(size, delay, fail_at) for _ in range(engines)],
        teachers=[FakeTeacher(delay, wrong) for _ in range(teachers)],
        probers=[FakeProber(delay, wrong) for _ in range(probers)],
        learners=[FakeLearner(delay) for _ in range(ranks)],
    )


def _done(value: Any) -> Any:
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


async def _failing(error: Exception) -> Any:
    raise error
