"""Roles of the actors, and which of them share GPUs."""

from typing import Literal, cast

from topd_ray.actors.placement import PlacedActor, Placement

RoleName = Literal["rollout", "teacher", "learner"]
"""What an actor does in a step; probe workers are the teacher's."""
ROLES: tuple[RoleName, ...] = ("rollout", "teacher", "learner")


def role_of(actor: PlacedActor) -> RoleName:
    """Return the role of an actor."""
    return "teacher" if actor.kind == "prober" else cast("RoleName", actor.kind)


def sharing_roles(placement: Placement) -> frozenset[RoleName]:
    """Return the roles that have a GPU together with another role."""
    sharing = set[RoleName]()
    for bundle in placement.bundles:
        for gpu in bundle.gpus:
            roles = {role_of(actor) for actor in placement.on(bundle.node, gpu)}
            if len(roles) > 1:
                sharing |= roles
    return frozenset(sharing)


__all__ = ["ROLES", "RoleName", "role_of", "sharing_roles"]
