"""Fake workers behind real handles, for tests of who waits for whom.

Fakes, because what is tested is timing that real engines never show on purpose. The
handles, the deadlines and the replacement of lost processes are the real ones.
"""

import asyncio
import random
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError

from tests.make import prompt
from topd_ray.actors.calls import Calls
from topd_ray.actors.handles import (
    ProberActorHandle,
    RolloutActorHandle,
    TeacherActorHandle,
)
from topd_ray.actors.learner_group import LearnerActorGroup
from topd_ray.actors.process import Process
from topd_ray.actors.protocols import Fleet
from topd_ray.actors.replacement import Replacement
from topd_ray.actors.roles import RoleName
from topd_ray.config import Config, parse_config
from topd_ray.driver.ledger import Ledger
from topd_ray.driver.loop import FinishedStep, LoopHooks, Schedule, StepLoop
from topd_ray.driver.pipeline import Pipeline
from topd_ray.driver.turns import RoleTurns
from topd_ray.driver.weight_sync import WeightSync
from topd_ray.evaluation import Accuracy
from topd_ray.messages import LossSums, Prompt, RolloutRequest, StepReport
from topd_ray.records.receipts import (
    ContinueReceipt,
    LearnReceipt,
    PartialReceipt,
    ProbeReceipt,
    ReadReceipt,
    ResampleReceipt,
    RewriteReceipt,
    RolloutReceipt,
    ScoreReceipt,
    Span,
    StepReceipts,
    TakeoverReceipt,
)
from topd_ray.windows import RecentDistances

NO_TIME = Span(0.0, 0.0)
DEAD = "dead"
SILENT = "silent"
Delay = Callable[[str], float]
"""Seconds that a named piece of work takes, e.g. `score 00000001.0`."""
Dies = Callable[[], str]
"""What becomes of a process at this call: nothing (""), DEAD or SILENT."""


def random_delays(seed: int, most_s: float = 0.003) -> Delay:
    rng = random.Random(seed)
    return lambda _: rng.random() * most_s


def config(sections: dict[str, Any] | None = None, **cluster: Any) -> Config:
    """A TOPD run of four prompts a step, two samples each, in chunks of two."""
    return parse_config(
        {
            "prompts": {"path": "p", "per_step": 4},
            "teacher": {"model": "t"},
            "learner": {"model": "s"},
            "rollout": {"samples_per_prompt": 2, "chunk_size": 2},
            "windows": {"divergence": {"quantile": 0.5}},
            "cluster": cluster,
        }
        | (sections or {}),
        source="test",
    )


class FakeProcess:
    """A process that ends, or falls silent, when `dies` says so."""

    def __init__(self, worker: Any, dies: Dies = lambda: "") -> None:
        self._worker = worker
        self._dies = dies
        self._fate = ""
        self._work = set[asyncio.Task[None]]()
        worker.restart()
        if worker.watch:
            worker.watch.starts_anew(worker)

    def call(
        self, method: str, *arguments: Any, num_returns: int = 1
    ) -> Sequence["asyncio.Future[Any]"]:
        if method == "ready":
            return [_done(None)]
        if method == "clock":
            return [_done(time.monotonic())]
        if self._lost():
            return [_lost(self._fate) for _ in range(num_returns)]
        if self._worker.watch:
            self._worker.watch.called(self._worker, method, *arguments)
        # futures and one task a call: histories make a great many of them
        loop = asyncio.get_running_loop()
        references = [loop.create_future() for _ in range(num_returns)]
        work = asyncio.ensure_future(self._answer(method, arguments, references))
        self._work.add(work)  # the event loop alone keeps no task alive
        work.add_done_callback(self._work.discard)
        return references

    def stream(
        self, method: str, *arguments: Any, room: int | None = None
    ) -> "FakeStream":
        del room
        if self._worker.watch:
            self._worker.watch.called(self._worker, method)
        return FakeStream(self._items(method, arguments))

    def interject(self, method: str, *arguments: Any) -> "asyncio.Future[Any]":
        return self.call(method, *arguments)[0]

    def kill(self) -> None:
        self._fate = self._fate or DEAD
        if self._worker.watch:
            self._worker.watch.is_killed(self._worker)

    async def _answer(
        self,
        method: str,
        arguments: Sequence[Any],
        references: Sequence["asyncio.Future[Any]"],
    ) -> None:
        watch = self._worker.watch
        try:
            values = [await _value(argument) for argument in arguments]
            if watch:
                watch.begins(self._worker, method)
            value = await getattr(self._worker, method)(*values)
        except Exception as error:  # an actor's error travels in its references
            for reference in references:
                if not reference.done():
                    reference.set_exception(error)
                    reference.exception()
            return
        finally:
            if watch:
                watch.ends(self._worker, method)
        parts = (value,) if len(references) == 1 else value
        for reference, part in zip(references, parts, strict=True):
            if not reference.done():
                reference.set_result(part)

    async def _items(
        self, method: str, arguments: Sequence[Any]
    ) -> AsyncIterator["asyncio.Future[Any]"]:
        items = getattr(self._worker, method)(*arguments)
        if self._lost():
            yield _lost(self._fate)
            return
        async for item in items:
            if self._lost():
                # nothing of a dead process holds up the one in its place
                await items.aclose()
                yield _lost(self._fate)
                return
            yield _done(item)

    def _lost(self) -> bool:
        self._fate = self._fate or self._dies()
        return bool(self._fate)


class FakeStream:
    """The items of a streaming call."""

    def __init__(self, items: AsyncIterator["asyncio.Future[Any]"]) -> None:
        self._items = items

    def __aiter__(self) -> AsyncIterator["asyncio.Future[Any]"]:
        return self._items

    async def completed(self) -> None:
        return None


class TurnWatch:
    """Which fake workers are awake, and a complaint about every call that finds none.

    A worker serves its calls in order, so a call is judged by the `sleep` and `wake`
    that were submitted before it. Two roles may not be awake together by those that
    have taken effect, and nothing may be under way when a worker falls asleep. What
    needs no GPU may be called asleep.
    """

    FREE = ("sleep", "wake", "abandon_step", "dump", "save_teacher")

    def __init__(self, roles: Mapping[str, Sequence["FakeWorker"]]) -> None:
        self.roles = {worker: role for role, ws in roles.items() for worker in ws}
        self.part: dict[FakeWorker, str | None] = {
            worker: "all" if role == "learner" else None
            for worker, role in self.roles.items()
        }
        self.promised = dict(self.part)
        self.under_way: dict[FakeWorker, list[str]] = {w: [] for w in self.roles}
        self.complaints = list[str]()
        self.story = list[str]()

    def called(self, worker: "FakeWorker", method: str, *arguments: Any) -> None:
        role = self.roles[worker]
        enough = ("all", "weights") if method == "update" else ("all",)
        if method not in self.FREE and self.promised[worker] not in enough:
            self.complaints.append(f"{method} of {role} found {self.promised[worker]}")
        if method == "sleep":
            self.promised[worker] = None
        if method == "wake" and self.promised[worker] != "all":
            self.promised[worker] = arguments[0] if arguments else "all"
        told = f"{role} {method}"
        if self.story[-1:] != [told]:
            self.story.append(told)

    def begins(self, worker: "FakeWorker", method: str) -> None:
        self.under_way[worker].append(method)

    def ends(self, worker: "FakeWorker", method: str) -> None:
        if method in self.under_way[worker]:
            self.under_way[worker].remove(method)

    def sleeps(self, worker: "FakeWorker") -> None:
        others = [m for m in self.under_way[worker] if m != "sleep"]
        if others:
            self.complaints.append(f"{self.roles[worker]} sleeps in {others}")
        self.part[worker] = None

    def wakes(self, worker: "FakeWorker", part: str) -> None:
        role = self.roles[worker]
        awake = {r for w, r in self.roles.items() if self.part[w] and r != role}
        if awake:
            self.complaints.append(f"{role} wakes beside {awake}")
        if self.part[worker] != "all":
            self.part[worker] = part

    def is_killed(self, worker: "FakeWorker") -> None:
        self.under_way[worker] = []
        self.part[worker] = None
        self.promised[worker] = None

    def starts_anew(self, worker: "FakeWorker") -> None:
        self.under_way[worker] = []
        self.part[worker] = None
        self.promised[worker] = "all"
        self.wakes(worker, "all")


class FakeWorker:
    """What the fake workers have in common."""

    watch: TurnWatch | None = None

    def restart(self) -> None:
        """Forget what a process under way held: another takes its place."""

    async def sleep(self) -> None:
        if self.watch:
            self.watch.sleeps(self)

    async def wake(self, part: str) -> None:
        if self.watch:
            self.watch.wakes(self, part)


STRIDE = 4
RESPONSE = 14
"""Tokens of every rollout that is not cut."""


def fork_of(name: str, threshold: float = 0.0) -> int | None:
    """Where a rollout goes wrong; early, late, or nowhere."""
    if surprise_of(name) <= threshold:
        return None
    return (None, 2, 9, 12)[zlib.crc32(name.encode()) % 4]


def surprise_of(name: str) -> float:
    """By how much its fork surprises the teacher, from 0 to 1."""
    return (1 + zlib.crc32(name.encode()[::-1])) / 2**32


class FakeRollout(FakeWorker):
    """Sends chunks of `size` rollouts; one call after the other, as an actor does."""

    def __init__(self, size: int, delay: Delay, fail_at: int | None = None) -> None:
        self.size = size
        self.delay = delay
        self.fail_at = fail_at
        self.restart()
        self.versions = list[int]()
        self.evaluated = list[int]()
        self.num_decoded = 0

    def restart(self) -> None:
        self.rolled_out = asyncio.Event()
        self.one_at_a_time = asyncio.Lock()
        self.cuts = dict[str, int]()

    async def roll_out(
        self,
        requests: Sequence[RolloutRequest],
        policy_version: int,
        done: frozenset[str],
        cuts: Mapping[str, int],
        stride: int | None,
    ) -> AsyncIterator[Any]:
        names = [r.rollout_id for r in requests if r.rollout_id not in done]
        async with self.one_at_a_time:
            self.rolled_out.clear()
            self.cuts = dict(cuts)
            if stride is not None:
                wanted = [request.rollout_id for request in requests]
                async for beginnings in self._decoded(wanted, stride):
                    yield beginnings
                    yield PartialReceipt(span=NO_TIME)
            for index, first in enumerate(range(0, len(names), self.size)):
                chunk = tuple(names[first : first + self.size])
                await asyncio.sleep(self.delay(f"rollout {chunk[0]}"))
                if index == self.fail_at:
                    raise RuntimeError("engine burst")
                yield chunk
                yield RolloutReceipt(
                    rollout_ids=chunk,
                    policy_version=policy_version,
                    num_tokens=10 * len(chunk),
                    num_truncated=0,
                    entropy_sum=1.0,
                    span=NO_TIME,
                )
            self.rolled_out.set()

    async def _decoded(
        self, names: list[str], stride: int
    ) -> AsyncIterator[dict[str, int]]:
        """Beginnings of rollouts, as long as each is decoded."""
        for num_tokens in range(stride, RESPONSE, stride):
            await asyncio.sleep(self.delay(f"decode {num_tokens}"))
            names = [name for name in names if self.cuts.get(name, 99) > num_tokens]
            self.num_decoded += stride * len(names)
            if names:
                yield dict.fromkeys(names, num_tokens)

    async def cut(self, cuts: Mapping[str, int]) -> None:
        self.cuts |= cuts

    async def sleep(self) -> None:
        async with self.one_at_a_time:  # after the calls submitted before
            if self.watch:
                self.watch.under_way[self] = []
            await super().sleep()

    async def resample(self, chunk: tuple[str, ...], policy_version: int) -> Any:
        await self.rolled_out.wait()
        await asyncio.sleep(self.delay(f"resample {chunk[0]}"))
        windows = tuple(f"{policy_version}:{name}" for name in chunk)
        return windows, ResampleReceipt(span=NO_TIME)

    async def update(self, policy_version: int, *_: Any) -> Span:
        async with self.one_at_a_time:
            self.versions.append(policy_version)
        return NO_TIME

    async def evaluate(self, problems: Sequence[Prompt]) -> Accuracy:
        async with self.one_at_a_time:
            self.evaluated.append(self.versions[-1] if self.versions else 0)
            await asyncio.sleep(self.delay("evaluate"))
        return Accuracy(num_problems=len(problems), num_correct=0)


class FakeDecoder(FakeWorker):
    """Decodes as the teacher. Its rewrites of the samples in `wrong` are dropped."""

    def __init__(self, delay: Delay, wrong: frozenset[int]) -> None:
        self.delay = delay
        self.wrong = wrong
        self.continued = list[str]()

    async def continue_from(self, chunk: tuple[str, ...]) -> Any:
        self.continued.extend(chunk)
        await asyncio.sleep(self.delay(f"continue {chunk[0]}"))
        receipt = ContinueReceipt(
            num_tokens=1, num_prefix_tokens=10, num_cached_tokens=9, span=NO_TIME
        )
        return tuple(f"after {name}" for name in chunk), receipt

    async def rewrite(self, chunk: tuple[str, ...], _: Sequence[Prompt]) -> Any:
        kept = tuple(n for n in chunk if int(n.split(".")[1]) not in self.wrong)
        await asyncio.sleep(self.delay(f"rewrite {chunk[0]}"))
        dropped = tuple((n, "rewrite is wrong") for n in chunk if n not in kept)
        return kept, RewriteReceipt(dropped=dropped, num_tokens=1, span=NO_TIME)

    async def update(self, *_: Any) -> Span:
        return NO_TIME


class FakeTeacher(FakeDecoder):
    """Scores; every chunk brings one candidate a rollout."""

    def __init__(self, delay: Delay, wrong: frozenset[int]) -> None:
        super().__init__(delay, wrong)
        self.busy = 0
        self.most_busy = 0
        self.scored = list[str]()
        self.forked = list[tuple[str, float]]()
        self.some_fork = False

    async def score(self, chunk: tuple[str, ...]) -> Any:
        self.scored.extend(chunk)
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        await asyncio.sleep(self.delay(f"score {chunk[0]}"))
        self.busy -= 1
        receipt = ScoreReceipt(
            num_tokens=10,
            num_sequence_tokens=(10,) * len(chunk),
            num_candidates=len(chunk),
            loss_sum=1.0,
            threshold_values=tuple(map(surprise_of, chunk)),
            span=NO_TIME,
        )
        return (*chunk, chunk, receipt)

    async def read_ahead(
        self, known: frozenset[str], threshold: float, *partials: dict[str, int]
    ) -> Any:
        """A fork is certain when two tokens follow it."""
        newest = {n: length for partial in partials for n, length in partial.items()}
        await asyncio.sleep(self.delay(f"read {next(iter(newest))}"))
        forks = tuple(
            (name, fork)
            for name, num_tokens in newest.items()
            if name not in known
            and (fork := fork_of(name, threshold)) is not None
            and num_tokens >= fork + 2
        )
        receipt = ReadReceipt(forks=forks, span=NO_TIME)
        return tuple(name for name, _ in forks), receipt

    async def take_over(
        self,
        chunk: tuple[str, ...],
        answers: Mapping[str, str],
        threshold: float,
        known: frozenset[str],
        *probed: str,
    ) -> Any:
        """Takeovers of the samples in `wrong` are dropped."""
        assert probed in ((), tuple(f"probed {name}" for name in chunk))
        forked = [
            name
            for name in chunk
            if not self.some_fork or fork_of(name, threshold) is not None
        ]
        forked = [name for name in forked if name not in known]
        self.forked.extend((name, threshold) for name in forked)
        await asyncio.sleep(self.delay(f"take over {chunk[0]}"))
        dropped = tuple(
            (name, "takeover is wrong")
            for name in chunk
            if int(name.split(".")[1]) in self.wrong
        )
        receipt = TakeoverReceipt(
            dropped=dropped,
            num_sequence_tokens=(10,) * (len(chunk) - len(dropped)),
            num_taken_over=len(forked),
            num_own=len(forked),
            num_judged=len(answers),
            num_right=0,
            num_judged_before=0,
            num_right_before=0,
            num_prefix_tokens=10,
            num_cached_tokens=9,
            num_tokens=len(chunk),
            judged_values=tuple((name, (surprise_of(name),)) for name in chunk),
            span=NO_TIME,
        )
        taken = (f"taken over {n}" if n in forked else None for n in chunk)
        return (*taken, receipt)


class FakeProber(FakeDecoder):
    """Probes; D_OT of a rollout is its sample index."""

    def __init__(self, delay: Delay, wrong: frozenset[int]) -> None:
        super().__init__(delay, wrong)
        self.fresh: list[Any] = []

    async def probe(
        self, chunk: tuple[str, ...], windows: tuple[str, ...], fresh: Any
    ) -> Any:
        assert windows == tuple(f"after {name}" for name in chunk)
        self.fresh.append(fresh)
        await asyncio.sleep(self.delay(f"probe {chunk[0]}"))
        distances = tuple(float(name.split(".")[1]) for name in chunk)
        receipt = ProbeReceipt(
            distances=distances,
            threshold_distances=distances,
            num_windows=len(distances),
            num_unconverged=0,
            span=NO_TIME,
        )
        return (*(f"probed {name}" for name in chunk), receipt)


class FakeLearner(FakeWorker):
    """One rank; it notes what it was given, in order."""

    def __init__(self, delay: Delay) -> None:
        self.delay = delay
        self.taken = list[str]()
        self.shares = list[int]()
        self.thresholds = list[float]()
        self.steps = 0
        self.steps_before = list[int]()
        self.num_abandoned = 0
        self.taken_over = list[str]()

    async def accumulate(self, threshold: float, *given: str | None) -> LearnReceipt:
        kinds = ("probed ", "taken over ")
        items = [item for item in given if item is not None]
        scored = [item for item in items if not item.startswith(kinds)]
        self.taken_over.extend(item for item in items if item.startswith(kinds[1]))
        for kind in kinds:
            beside = [item for item in items if item.startswith(kind)]
            wanted = [kind + name for name in scored]
            assert beside in ([], [one for one in wanted if one in beside])
            if None not in given:
                assert beside in ([], wanted)
        self.taken.extend(scored)
        self.shares.append(len(scored))
        self.thresholds.append(threshold)
        self.steps_before.append(self.steps)
        await asyncio.sleep(self.delay(f"learn {scored[0] if scored else 'nothing'}"))
        sums = LossSums(num_tokens=len(scored))
        return LearnReceipt(sums=sums, num_divergent=0, span=NO_TIME)

    async def step(self, _: bool) -> StepReport:
        self.steps += 1
        return StepReport(
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

    async def abandon_step(self) -> None:
        self.num_abandoned += 1

    async def publish(self) -> AsyncIterator[Any]:
        yield "weights"

    async def follow_teacher(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Fakes:
    """The workers of a fleet, to look at after a run."""

    rollouts: list[FakeRollout]
    teachers: list[FakeTeacher]
    probers: list[FakeProber]
    learners: list[FakeLearner]

    def fleet(
        self,
        calls: Calls,
        replacement: Replacement | None = None,
        dies: Dies = lambda: "",
        *,
        replaceable: bool = True,
        takes_turns: frozenset[RoleName] = frozenset(),
    ) -> Fleet:
        """Real handles over processes that end when `dies` says so; learners live."""
        granted = replacement or Replacement.never()

        def starter(worker: Any) -> Callable[[], Process]:
            return lambda: FakeProcess(worker, dies)

        made = Fleet(
            rollouts=[
                RolloutActorHandle(
                    f"rollout[{i}]",
                    starter(worker),
                    calls,
                    granted,
                    replaceable=replaceable,
                )
                for i, worker in enumerate(self.rollouts)
            ],
            teachers=[
                TeacherActorHandle(f"teacher[{i}]", starter(worker), calls, granted)
                for i, worker in enumerate(self.teachers)
            ],
            probers=[
                ProberActorHandle(f"prober[{i}]", starter(worker), calls, granted)
                for i, worker in enumerate(self.probers)
            ],
            learners=LearnerActorGroup(
                [FakeProcess(worker) for worker in self.learners], calls
            ),
            takes_turns=takes_turns,
        )
        if takes_turns:
            self.watched()
        return made

    def watched(self) -> TurnWatch:
        """Let all workers tell one watch what they do; all but the learner sleep."""
        roles: dict[str, Sequence[FakeWorker]] = {
            "rollout": self.rollouts,
            "teacher": [*self.teachers, *self.probers],
            "learner": self.learners,
        }
        watch = TurnWatch(roles)
        for workers in roles.values():
            for worker in workers:
                worker.watch = watch
        return watch


def fakes(
    delay: Delay,
    *,
    engines: int = 1,
    teachers: int = 1,
    probers: int = 1,
    ranks: int = 1,
    size: int = 2,
    fail_at: int | None = None,
    wrong: frozenset[int] = frozenset(),
    some_fork: bool = False,
) -> Fakes:
    """`some_fork`: rollouts have the forks of `fork_of`; else each has one."""
    made = Fakes(
        rollouts=[FakeRollout(size, delay, fail_at) for _ in range(engines)],
        teachers=[FakeTeacher(delay, wrong) for _ in range(teachers)],
        probers=[FakeProber(delay, wrong) for _ in range(probers)],
        learners=[FakeLearner(delay) for _ in range(ranks)],
    )
    for teacher in made.teachers:
        teacher.some_fork = some_fork
    return made


class Steps(LoopHooks):
    """Prompts for a loop, and what its steps left."""

    def __init__(self, num_prompts: int, cursor: int = 0) -> None:
        self.num_prompts = num_prompts
        self.cursor = cursor
        self.receipts = list[StepReceipts]()
        self.accuracies = dict[int, Accuracy]()
        self.evaluation_cpu_s = list[float]()

    def take_prompts(self) -> list[Prompt]:
        first, self.cursor = self.cursor, self.cursor + self.num_prompts
        return [prompt(position) for position in range(first, self.cursor)]

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        self.cursor -= len(prompts)

    async def finished(self, finished: FinishedStep) -> None:
        self.receipts.append(finished.receipts)
        self.evaluation_cpu_s.append(finished.evaluation_cpu_s)

    def evaluated(self, step: int, accuracy: Accuracy) -> None:
        self.accuracies[step] = accuracy


def loop_over(
    chosen: Config,
    fleet: Fleet,
    hooks: Steps,
    *,
    steps: int,
    ledger: Ledger | None = None,
    recent: RecentDistances | None = None,
    **options: Any,
) -> StepLoop:
    """The loop of a run over a fleet, for `steps` steps in all."""
    turns = RoleTurns(fleet)
    return StepLoop(
        Schedule.of(chosen, steps),
        Pipeline(
            chosen,
            fleet,
            Ledger() if ledger is None else ledger,
            recent or RecentDistances(chosen.windows.divergence),
            turns,
        ),
        WeightSync(fleet, turns=turns),
        hooks.take_prompts,
        fleet=fleet,
        hooks=hooks,
        **options,
    )


def _done(value: Any) -> "asyncio.Future[Any]":
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


async def _value(item: Any) -> Any:
    return await item if isinstance(item, asyncio.Future) else item


def _lost(fate: str) -> "asyncio.Future[Any]":
    """What a dead process owes fails; what a silent one owes never comes."""
    future = asyncio.get_running_loop().create_future()
    if fate == DEAD:
        future.set_exception(RayActorError())
        future.exception()  # a reference that is not awaited is no warning
    return future


def names_of(taken: Iterable[Sequence[str]]) -> list[str]:
    """All rollouts that the ranks took, rank by rank."""
    names: list[str] = []
    for rank in taken:
        names += rank
    return names
