"""Config and placement -> the transport of weights."""

from topd_ray.actors.placement import Placement, assumed_placement
from topd_ray.config import Config, Transport
from topd_ray.weights.plan import GpuPlacement, Gpus, choose_transport


def transport_of(config: Config, placement: Placement | None = None) -> Transport:
    """Return how weights travel to the rollout engines.

    Args:
        config: The run's config.
        placement: Where its actors are; None: on the nodes that the config assumes.

    Raises:
        UserError: The config asks for a transport that the placement cannot do.
    """
    rollout = config.rollout
    if rollout.engine.backend != "vllm" or not config.decodes_rollouts:
        return "store"
    return choose_transport(
        config.weights,
        _gpus_of(placement or assumed_placement(config)),
        max_staleness=rollout.max_staleness,
    )


def _gpus_of(placement: Placement) -> GpuPlacement:
    return GpuPlacement(
        engines=_of_kind(placement, "rollout"), ranks=_of_kind(placement, "learner")
    )


def _of_kind(placement: Placement, kind: str) -> tuple[Gpus, ...]:
    return tuple(
        frozenset(f"{actor.node}:{gpu}" for gpu in actor.gpus)
        for actor in placement.actors
        if actor.kind == kind
    )


__all__ = ["transport_of"]
