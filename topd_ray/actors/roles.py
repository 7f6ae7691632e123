"""Roles of the actors, and which of them share GPUs."""

from typing import Literal, cast

from topd_ray.actors.placement import PlacedActor, Placement

Role = Literal["rollout", "teacher", "learner"]
"""What an actor does in a step; probe workers are the teacher's."""
ROLES: tuple[Role, ...] = ("rollout", "teacher", "learner")


def role_of(actor: PlacedActor) -> Role:
    """Return the role of an actor."""
    return "teacher" if actor.kind == "prober" else cast("Role", actor.kind)


def sharing_roles(placement: Placement) -> frozenset[Role]:
    """Return the roles that have a GPU together with another role."""
    sharing = set[Role]()
    for bundle in placement.bundles:
        for gpu in bundle.gpus:
            roles = {role_of(actor) for actor in placement.on(bundle.node, gpu)}
            if len(roles) > 1:
                sharing |= roles
    return frozenset(sharing)


__all__ = ["ROLES", "Role", "role_of", "sharing_roles"]
