"""Plain worker classes -> Ray actors, placed by the numbers in the config."""

import asyncio
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from topd_ray.actors import LearnerWorker, ProbeWorker, RolloutWorker, TeacherWorker
from topd_ray.actors.calls import Caller
from topd_ray.actors.inline import InlineActor
from topd_ray.config import (
    ClusterConfig,
    Config,
    EngineConfig,
    LearnerConfig,
    ProbeConfig,
)
from topd_ray.errors import UserError
from topd_ray.records.run_folder import RunFolder

Place = EngineConfig | LearnerConfig | ProbeConfig
"""A section that says what an actor takes of a machine."""

_KNOCK_S = 10.0
_TEACHER_CALLS = 64
"""Calls that a teacher works on at once; its engine decides what goes first. Beyond any
number of chunks in flight that makes sense, since a thread that waits costs nothing.
"""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "0",
}


class Member:
    """A Ray actor that can be replaced: calls go to whoever has its place now."""

    def __init__(
        self, name: str, start: Callable[[], Any], end: Callable[[Any], None] = ray.kill
    ) -> None:
        """`name`: as errors and metrics say it, `teacher[0]`."""
        self.name, self._start, self._end = name, start, end
        self.handle = start()
        self.lock = asyncio.Lock()

    def __getattr__(self, what: str) -> Any:
        return getattr(self.handle, what)

    def replace(self) -> None:
        """Another process, which is not ready yet; the old one is ended if it still
        lives.
        """
        self._end(self.handle)
        self.handle = self._start()


def holder(actor: Any) -> Any:
    """Who has the place of an actor now."""
    return actor.handle if isinstance(actor, Member) else actor


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Handles of the four kinds of actor."""

    rollouts: list[Any]
    teachers: list[Any]
    probers: list[Any]
    learners: list[Any]

    def teaching(self) -> list[tuple[str, Any]]:
        """Name and handle of whatever speaks as the teacher."""
        return [
            (f"{kind}[{index}]", actor)
            for kind, actors in (("teacher", self.teachers), ("prober", self.probers))
            for index, actor in enumerate(actors)
        ]

    def names(self) -> list[str]:
        """Every actor's."""
        kinds = (("rollout", self.rollouts), ("learner", self.learners))
        own = [
            f"{kind}[{index}]" for kind, actors in kinds for index in range(len(actors))
        ]
        return own + [name for name, _ in self.teaching()]

    def kill(self) -> None:
        """End every actor at once; what they hold is in checkpoints or can be made
        again.
        """
        for actor in [*self.rollouts, *self.teachers, *self.probers, *self.learners]:
            if isinstance(actor, InlineActor):
                actor.kill()
            else:
                ray.kill(actor.handle)


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """Join the cluster of the config or of the submitted job; start a local one
    otherwise.

    Does nothing with `cluster.placement: inline`. Raises UserError where there is no
    such cluster, or where it is too small for the config.
    """
    if config.cluster.placement == "inline":
        yield
        return
    try:
        _connect(config)
        yield
    finally:
        ray.shutdown()


def _connect(config: Config) -> None:
    os.environ.update(
        {key: os.environ.get(key, value) for key, value in _QUIET.items()}
    )
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    cpus, gpus = _asked(config)
    if address:
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="warning")
        except (OSError, ValueError) as error:
            raise UserError(
                f"cluster.address={address}: no Ray cluster there ({error}); `ray start"
                " --head` starts one, and without an address a local one is started"
            ) from None
    else:
        # Without a dashboard nobody reads Ray's log of calls, 3.5 KB each in the GCS's
        # memory.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        ray.init(
            address="local",
            num_cpus=max(
                math.ceil(cpus), os.cpu_count() or 1
            ),  # logical: a laptop may share cores
            object_store_memory=int(config.cluster.object_store_gib * 2**30),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
        )
    _refuse_what_does_not_fit(cpus, gpus, config.cluster)


def _knock(address: str) -> None:
    """Ray itself waits for minutes where nothing listens. `auto` names no port to
    try.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S):
            pass


async def spawn(
    config: Config, folder: RunFolder, caller: Caller, *, total_steps: int
) -> Fleet:
    """Start all actors side by side and wait until each has its model."""
    fleet = _fleet(config, folder, total_steps)
    meeting = await caller.start(
        "learner[0]", "rendezvous", fleet.learners[0].rendezvous.remote()
    )
    waits = [
        caller.start(f"learner[{rank}]", "start", actor.start.remote(*meeting))
        for rank, actor in enumerate(fleet.learners)
    ]
    for kind in ("rollouts", "teachers", "probers"):
        for index, actor in enumerate(getattr(fleet, kind)):
            waits.append(
                caller.start(f"{kind[:-1]}[{index}]", "ready", actor.ready.remote())
            )
    await caller.all(waits)
    return fleet


def _fleet(config: Config, folder: RunFolder, total_steps: int) -> Fleet:
    inline = config.cluster.placement == "inline"

    def actor(name: str, worker: type, place: Place, **arguments: Any) -> Any:
        if inline:
            return InlineActor(worker(config, **arguments))
        log = folder.logs / f"{name}.log"
        return Member(
            name, lambda: _remote(worker, place).remote(config, log=log, **arguments)
        )

    return Fleet(
        rollouts=[
            actor(f"rollout[{index}]", RolloutWorker, config.rollout.engine)
            for index in range(config.rollout.num_engines)
        ],
        teachers=[
            actor(f"teacher[{index}]", TeacherWorker, config.teacher.engine)
            for index in range(config.teacher.num_engines)
        ],
        probers=[
            actor(f"prober[{index}]", ProbeWorker, config.probe_engine or config.probe)
            for index in range(config.num_probe_workers)
        ],
        learners=[
            actor(
                f"learner[{rank}]",
                LearnerWorker,
                config.learner,
                rank=rank,
                total_steps=total_steps,
                windows_folder=folder.windows,
            )
            for rank in range(config.learner.num_ranks)
        ],
    )


def _remote(worker: type, place: Place) -> Any:
    # A teacher reads a chunk while it continues from others; everyone else does one
    # thing at a time
    calls = {"max_concurrency": _TEACHER_CALLS} if worker is TeacherWorker else {}
    return ray.remote(
        num_cpus=place.cpus, num_gpus=_gpus(place), max_restarts=0, **calls
    )(worker)


def _gpus(place: Place) -> float:
    return 0.0 if isinstance(place, ProbeConfig) else place.gpus


def _asked(config: Config) -> tuple[float, float]:
    """Logical CPUs and GPUs of all actors together."""
    places: list[tuple[int, Place]] = [
        (config.rollout.num_engines, config.rollout.engine),
        (config.teacher.num_engines, config.teacher.engine),
        (config.num_probe_workers, config.probe_engine or config.probe),
        (config.learner.num_ranks, config.learner),
    ]
    return (
        sum(count * place.cpus for count, place in places),
        sum(count * _gpus(place) for count, place in places),
    )


def _refuse_what_does_not_fit(cpus: float, gpus: float, cluster: ClusterConfig) -> None:
    there = ray.cluster_resources()
    where = cluster.address or "this machine"
    for kind, asked in (("GPU", gpus), ("CPU", cpus)):
        if asked > there.get(kind, 0.0):
            raise UserError(
                f"the config asks for {asked:g} {kind}s in all, {where} has"
                f" {there.get(kind, 0.0):g}; lower the `{kind.lower()}s` fields or the"
                " number of engines, workers and ranks (`topd check` lists them)"
            )
