"""Prompt -> Rollout. Samples from the student, under weights of a known version."""

from topd_ray.rollout.actor import RolloutActor
from topd_ray.rollout.request_order import FinishedRollouts

__all__ = ["FinishedRollouts", "RolloutActor"]
