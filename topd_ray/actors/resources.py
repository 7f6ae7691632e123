"""What each kind of actor takes of a machine, in Ray's resources."""

from dataclasses import dataclass

from topd_ray.config import Config


@dataclass(frozen=True, slots=True)
class ActorResources:
    """Count of one kind of actor, and what Ray sets aside for each."""

    count: int
    cpus: float
    gpus: float


def resources_of(config: Config) -> dict[str, ActorResources]:
    """Return the resources of the kinds: learner, rollout, teacher, prober."""
    rollout = config.rollout.engine
    teacher = config.teacher.engine
    own = config.probe_engine
    return {
        "learner": ActorResources(
            config.learner.num_ranks, config.learner.cpus, config.learner.gpus
        ),
        "rollout": ActorResources(
            config.rollout.num_engines,
            rollout.cpus,
            # given responses are passed on without an engine
            rollout.gpus if config.decodes_rollouts else 0.0,
        ),
        "teacher": ActorResources(
            config.teacher.num_engines, teacher.cpus, teacher.gpus
        ),
        "prober": ActorResources(
            config.num_probe_workers,
            own.cpus if own else config.probe.cpus,
            own.gpus if own else 0.0,
        ),
    }


def total_resources(config: Config) -> dict[str, float]:
    """Return logical CPUs and GPUs of all actors together, by Ray's names for them.

    With `cluster.layout: colocated` the kinds of actor share the GPUs.
    """
    kinds = resources_of(config).values()
    gpus = [kind.count * kind.gpus for kind in kinds]
    is_colocated = config.cluster.layout == "colocated"
    return {
        "GPU": max(gpus) if is_colocated else sum(gpus),
        "CPU": sum(kind.count * kind.cpus for kind in kinds),
    }
