"""Prompt -> Rollout. Samples from the student, under weights of a known version."""

from topd_ray.rollout.actor import RolloutActor

__all__ = ["RolloutActor"]
