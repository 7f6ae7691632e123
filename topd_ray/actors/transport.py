"""Config -> the transport of weights that its placement allows."""

from itertools import count

from topd_ray.actors.resources import resources_of
from topd_ray.config import Config, Transport
from topd_ray.weights.plan import GpuPlacement, Gpus, choose_transport


def transport_of(config: Config) -> Transport:
    """Return how weights travel to the rollout engines.

    Raises UserError where the config asks for a transport that is impossible.
    """
    rollout = config.rollout
    if rollout.engine.backend != "vllm" or not config.decodes_rollouts:
        return "store"
    return choose_transport(
        config.weights, gpus_of(config), max_staleness=rollout.max_staleness
    )


def gpus_of(config: Config) -> GpuPlacement:
    """Return which GPUs the rollout engines and learner ranks have.

    Actors with whole GPUs share none. Shares of a GPU pair engine i with rank i.
    """
    resources = resources_of(config)
    names = map(str, count())
    rollout = resources["rollout"]
    learner = resources["learner"]
    engines = tuple(
        _next_gpus(names, rollout.gpus, f"share{index}")
        for index in range(rollout.count)
    )
    ranks = tuple(
        _next_gpus(names, learner.gpus, f"share{index}")
        for index in range(learner.count)
    )
    return GpuPlacement(engines=engines, ranks=ranks)


def _next_gpus(names: "map[str]", gpus: float, shared: str) -> Gpus:
    if 0 < gpus < 1:
        return frozenset({shared})
    return frozenset(next(names) for _ in range(int(gpus)))


__all__ = ["gpus_of", "transport_of"]
