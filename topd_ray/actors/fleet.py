"""Worker classes -> a fleet of handles: Ray actors, or workers in this process."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from topd_ray.actors.resources import ActorResources, resources_of
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
        resources: ActorResources,
        *arguments: object,
        **named: object,
    ) -> None:
        # A teacher reads a chunk while it continues from others; all other workers do
        # one thing at a time.
        concurrency = _TEACHER_CALLS if worker is TeacherWorker else 1
        remote = ray.remote(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=0,
            max_concurrency=concurrency,
            concurrency_groups={_BESIDE: 1},
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
        options: dict[str, Any] = {"num_returns": "streaming"}
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


@dataclass(frozen=True, slots=True)
class _Starter:
    """Makes the processes of a run's actors."""

    config: Config
    logs: Path

    def process(
        self, name: str, worker: WorkerClass, **named: object
    ) -> Callable[[], Process]:
        """Return what starts the actor `name`, as often as it is called."""
        if self.config.cluster.placement == "inline":
            return lambda: InlineProcess(worker(self.config, **named))
        resources = resources_of(self.config)[name.partition("[")[0]]
        log = self.logs / f"{name}.log"
        return lambda: RayProcess(worker, resources, self.config, log=log, **named)


@asynccontextmanager
async def open_fleet(
    config: Config,
    folder: RunFolder,
    calls: Calls,
    replacement: Replacement,
    *,
    total_steps: int,
) -> AsyncIterator[Fleet]:
    """Start all actors side by side; yield their handles when each has its model.

    At the end of the block every actor is ended and none is replaced any more, also
    where the start fails.
    """
    starter = _Starter(config, folder.logs)
    transport = transport_of(config)
    opened: list[Handle | LearnerActorGroup] = []
    try:
        learners = _open_learners(starter, calls, folder, total_steps)
        opened.append(learners)
        rollouts = []
        for index in range(config.rollout.num_engines):
            name = f"rollout[{index}]"
            engine = RolloutActorHandle(
                name,
                starter.process(name, RolloutWorker, transport=transport),
                calls,
                replacement,
                replaceable=config.rollout.max_staleness == 0,
                publish_again=learners.publish_again,
            )
            rollouts.append(engine)
            opened.append(engine)
        teachers = []
        for index in range(config.teacher.num_engines):
            name = f"teacher[{index}]"
            teacher = TeacherActorHandle(
                name, starter.process(name, TeacherWorker), calls, replacement
            )
            teachers.append(teacher)
            opened.append(teacher)
        probers = []
        for index in range(config.num_probe_workers):
            name = f"prober[{index}]"
            prober = ProberActorHandle(
                name, starter.process(name, ProbeWorker), calls, replacement
            )
            probers.append(prober)
            opened.append(prober)
        handles = [*rollouts, *teachers, *probers]
        await all_of([learners.start(), *(handle.ready() for handle in handles)])
        yield Fleet(
            rollouts=rollouts,
            teachers=teachers,
            probers=probers,
            learners=learners,
            direct=_direct_ends(config, transport, learners, rollouts),
        )
    finally:
        replacement.close()
        for actor in opened:
            actor.kill()


def _direct_ends(
    config: Config,
    transport: Transport,
    learners: LearnerActorGroup,
    rollouts: Sequence[RolloutActorHandle],
) -> DirectEnds | None:
    if transport == "store" or not config.decodes_rollouts:
        return None
    return DirectEnds(
        transport=transport,
        learners=learners,
        engines=rollouts,
        workers=config.rollout.engine.tensor_parallel,
    )


def _open_learners(
    starter: _Starter, calls: Calls, folder: RunFolder, total_steps: int
) -> LearnerActorGroup:
    processes = []
    for rank in range(starter.config.learner.num_ranks):
        start = starter.process(
            f"learner[{rank}]",
            LearnerWorker,
            rank=rank,
            total_steps=total_steps,
            windows_folder=folder.windows,
        )
        processes.append(start())
    return LearnerActorGroup(processes, calls)
