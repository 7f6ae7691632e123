"""Config and placement -> the roles that take turns on the GPUs that they share."""

from collections.abc import Sequence

from topd_ray.actors.placement import Placement
from topd_ray.actors.roles import ROLES, RoleName, sharing_roles
from topd_ray.config import Config
from topd_ray.errors import UserError
from topd_ray.inputs.gpu_memory import GpuMemory, gpu_memory

_NO_ROLE: frozenset[RoleName] = frozenset()
_MOVED = ("weights", "gradients", "optimizer")
"""Parts of an actor that it moves to the host; its other parts are dropped."""


def roles_by_turns(config: Config, placement: Placement | None) -> frozenset[RoleName]:
    """Return the roles that sleep while others of them work; often none.

    By `cluster.turns`, or by memory: where all roles together are too much for a GPU
    and one role at a time is not, those that share a GPU take turns.

    Args:
        config: The run's config.
        placement: Of its actors; None with `cluster.placement: inline`.

    Raises:
        UserError: Memory asks for turns, and something in the config cannot wait.
    """
    if config.cluster.turns is False:
        return _NO_ROLE
    sharing = _NO_ROLE if placement is None else sharing_roles(placement)
    if config.cluster.turns:
        # On a CPU all roles share the one machine.
        return sharing or frozenset(ROLES)
    if placement is None or not sharing:
        return _NO_ROLE
    together = gpu_memory(config, placement)
    if _fit(together) or not _fit(gpu_memory(config, placement, sharing)):
        return _NO_ROLE
    _refuse_what_cannot_wait(config, together)
    return sharing


def host_gib(gpus: Sequence[GpuMemory]) -> dict[int, float]:
    """Return what sleeping roles hold in the memory of each node, at the most."""
    sums: dict[int, float] = {}
    for gpu in gpus:
        for actor in gpu.actors:
            if actor.role in gpu.takes_turns:
                moved = sum((actor.parts or {}).get(what, 0.0) for what in _MOVED)
                sums[gpu.node] = sums.get(gpu.node, 0.0) + moved
    return sums


def _fit(gpus: Sequence[GpuMemory]) -> bool:
    return all(gpu.margin_gib is None or gpu.margin_gib >= 0 for gpu in gpus)


def _refuse_what_cannot_wait(config: Config, together: Sequence[GpuMemory]) -> None:
    fullest = max(together, key=lambda gpu: gpu.gib or 0.0)
    why = (
        f"GPU {fullest.gpu} of node {fullest.node} would hold {fullest.gib:.1f} GiB and"
        f" has {fullest.card_gib:g} (cluster.gpu_memory_gib), so its roles would have"
        " to take turns,"
    )
    for broken, message in config.turn_rules(why):
        if broken:
            raise UserError(message)


__all__ = ["host_gib", "roles_by_turns"]
