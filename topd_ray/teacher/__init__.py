"""Rollout -> ScoredRollout. The teacher reads what the student wrote."""

from topd_ray.teacher.actor import TeacherActor

__all__ = ["TeacherActor"]
