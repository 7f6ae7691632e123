"""Worker classes -> a fleet of handles: Ray actors, or workers in this process."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ray

from topd_ray.actors.calls import Calls, all_of
from topd_ray.actors.handles import (
    Handle,
    ProberActorHandle,
    RolloutActorHandle,
    TeacherActorHandle,
)
from topd_ray.actors.inline import InlineProcess, InlineRef
from topd_ray.actors.learner import LearnerWorker
from topd_ray.actors.learner_group import LearnerActorGroup
from topd_ray.actors.prober import ProbeWorker
from topd_ray.actors.process import Process, Reference, Stream
from topd_ray.actors.protocols import DirectEnds, Fleet, Ref
from topd_ray.actors.replacement import Replacement
from topd_ray.actors.reservation import Reservation, reserved
from topd_ray.actors.roles import RoleName
from topd_ray.actors.rollout import RolloutWorker
from topd_ray.actors.teacher import TeacherWorker
from topd_ray.actors.transport import transport_of
from topd_ray.actors.worker import Worker
from topd_ray.config import Config, Transport
from topd_ray.records.run_folder import RunFolder

T = TypeVar("T")
WorkerClass = Callable[..., Worker]
"""A class of workers: it takes the config, and what its kind needs besides."""
_TEACHER_CALLS = 64
"""Calls that a teacher works on at once; its engine decides what goes first. Beyond any
number of chunks in flight that makes sense, since a thread that waits costs nothing.
"""


_BESIDE = "beside"
"""Ray's concurrency group of calls that do not wait for the call under way."""


class RayProcess:
    """A Ray actor as a `Process` (handles.py)."""

    def __init__(
        self,
        worker: WorkerClass,
        options: Mapping[str, object],
        *arguments: object,
        **named: object,
    ) -> None:
        """`options`: Ray's, of where the actor is and what it takes there."""
        # A teacher reads a chunk while it continues from others; all other workers do
        # one thing at a time.
        concurrency = _TEACHER_CALLS if worker is TeacherWorker else 1
        remote = ray.remote(
            max_restarts=0,
            max_concurrency=concurrency,
            concurrency_groups={_BESIDE: 1},
            **options,
        )(worker)
        self.actor: Any = remote.remote(*arguments, **named)

    def call(
        self, method: str, *arguments: object, num_returns: int = 1
    ) -> tuple[Reference, ...]:
        """Submit a call; one reference a returned value."""
        call = getattr(self.actor, method).options(num_returns=num_returns)
        references = call.remote(*arguments)
        return (references,) if num_returns == 1 else tuple(references)

    def stream(
        self, method: str, *arguments: object, room: int | None = None
    ) -> Stream:
        """Submit a call that yields; it pauses while `room` items wait to be taken."""
        options: dict[str, object] = {"num_returns": "streaming"}
        if room is not None:
            options["_generator_backpressure_num_objects"] = room
        stream: Stream = (
            getattr(self.actor, method).options(**options).remote(*arguments)
        )
        return stream

    def interject(self, method: str, *arguments: object) -> Reference:
        """Submit a call that another thread of the actor serves."""
        call = getattr(self.actor, method).options(concurrency_group=_BESIDE)
        reference: Reference = call.remote(*arguments)
        return reference

    def kill(self) -> None:
        """End the process at once; a checkpoint holds what it held, or it is made
        again.
        """
        ray.kill(self.actor)


def put(config: Config, value: T) -> Ref[T]:
    """Return a reference to a value of the driver's, for a call of an actor."""
    if config.cluster.placement == "inline":
        return InlineRef(value)
    reference: Ref[T] = ray.put(value)
    return reference


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerClasses:
    """The class of the workers of each kind."""

    rollout: WorkerClass = RolloutWorker
    teacher: WorkerClass = TeacherWorker
    prober: WorkerClass = ProbeWorker
    learner: WorkerClass = LearnerWorker


@dataclass(frozen=True, slots=True)
class _Starter:
    """Makes the processes of a run's actors, and ends them."""

    config: Config
    logs: Path
    workers: WorkerClasses
    reservation: Reservation | None
    """None with `cluster.placement: inline`."""
    started: list[Process] = field(default_factory=list)

    def process(self, name: str, **named: object) -> Callable[[], Process]:
        """Return what starts the actor `name`, as often as it is called."""

        def start() -> Process:
            process = self._process(name, **named)
            self.started.append(process)
            return process

        return start

    def end_all(self) -> None:
        """End every process that was started."""
        for process in self.started:
            process.kill()

    def _process(self, name: str, **named: object) -> Process:
        worker: WorkerClass = getattr(self.workers, name.partition("[")[0])
        if self.reservation is None:
            return InlineProcess(worker(self.config, **named))
        options = self.reservation.options(name)
        log = self.logs / f"{name}.log"
        return RayProcess(worker, options, self.config, log=log, **named)


@asynccontextmanager
async def open_fleet(
    config: Config,
    folder: RunFolder,
    calls: Calls,
    replacement: Replacement,
    *,
    total_steps: int,
    workers: WorkerClasses = WorkerClasses(),
    takes_turns: frozenset[RoleName] = frozenset(),
) -> AsyncIterator[Fleet]:
    """Place and start all actors; yield their handles when each has its model.

    Roles that take turns start one after the other, and each sleeps when it has its
    model, but for the learner, which comes last.

    At the end of the block every actor is ended, none is replaced any more, and no GPU
    is held, also where the start fails. Raises PlacementError where an actor has no
    place.
    """
    async with _reserved(config, calls) as reservation:
        starter = _Starter(config, folder.logs, workers, reservation)
        try:
            placement = None if reservation is None else reservation.placement
            transport = "store" if takes_turns else transport_of(config, placement)
            opening = _Opening(starter, calls, replacement, transport, takes_turns)
            learners = _open_learners(starter, calls, folder, total_steps)
            yield await opening.fleet(learners)
        finally:
            replacement.close()
            starter.end_all()


@asynccontextmanager
async def _reserved(config: Config, calls: Calls) -> AsyncIterator[Reservation | None]:
    if config.cluster.placement == "inline":
        yield None
        return
    async with reserved(config, calls) as reservation:
        yield reservation


@dataclass(frozen=True, slots=True)
class _Opening:
    """Starts the actors of a fleet in the order that their GPUs ask for."""

    starter: _Starter
    calls: Calls
    replacement: Replacement
    transport: Transport
    takes_turns: frozenset[RoleName]

    async def fleet(self, learners: LearnerActorGroup) -> Fleet:
        """Return the handles of all actors when each has its model."""
        config = self.starter.config
        rollouts = [
            RolloutActorHandle(
                name,
                self._start_of(name, transport=self.transport),
                self.calls,
                self.replacement,
                replaceable=config.rollout.max_staleness == 0,
                publish_again=learners.publish_again,
            )
            for name in _names("rollout", config.rollout.num_engines)
        ]
        await self._settle("rollout", rollouts)
        teachers = [
            TeacherActorHandle(name, self._start_of(name), self.calls, self.replacement)
            for name in _names("teacher", config.teacher.num_engines)
        ]
        probers = [
            ProberActorHandle(name, self._start_of(name), self.calls, self.replacement)
            for name in _names("prober", config.num_probe_workers)
        ]
        await self._settle("teacher", [*teachers, *probers])
        await self._finish([*rollouts, *teachers, *probers], learners)
        return Fleet(
            rollouts=rollouts,
            teachers=teachers,
            probers=probers,
            learners=learners,
            direct=self._direct_ends(rollouts, learners),
            takes_turns=self.takes_turns,
        )

    def _start_of(self, name: str, **named: object) -> Callable[[], Process]:
        role: RoleName = "rollout" if name.startswith("rollout") else "teacher"
        if role in self.takes_turns:
            named["sleeps"] = True
        return self.starter.process(name, **named)

    async def _settle(self, role: RoleName, handles: Sequence[Handle]) -> None:
        """Let the actors of a role load, and sleep, before those of another start.

        Without turns none is awaited here: all load at the same time.
        """
        if not self.takes_turns:
            return
        await all_of([handle.ready() for handle in handles])
        if role in self.takes_turns:
            await all_of([handle.sleep() for handle in handles])

    async def _finish(
        self, handles: Sequence[Handle], learners: LearnerActorGroup
    ) -> None:
        """Wait until each actor has its model."""
        reservation = self.starter.reservation
        if self.takes_turns:
            await learners.start()
        elif reservation is not None and reservation.placement.learners_share:
            # vLLM expects its GPUs for itself while it starts.
            await all_of([handle.ready() for handle in handles])
            await learners.start()
        else:
            await all_of([learners.start(), *(handle.ready() for handle in handles)])

    def _direct_ends(
        self, rollouts: Sequence[RolloutActorHandle], learners: LearnerActorGroup
    ) -> DirectEnds | None:
        if self.transport == "store":
            return None
        return DirectEnds(
            transport=self.transport,
            learners=learners,
            engines=rollouts,
            workers=self.starter.config.rollout.engine.tensor_parallel,
        )


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}[{index}]" for index in range(count)]


def _open_learners(
    starter: _Starter, calls: Calls, folder: RunFolder, total_steps: int
) -> LearnerActorGroup:
    processes = []
    for rank, name in enumerate(_names("learner", starter.config.learner.num_ranks)):
        start = starter.process(
            name,
            rank=rank,
            total_steps=total_steps,
            folder=folder,
        )
        processes.append(start())
    return LearnerActorGroup(processes, calls)
