"""Rollout -> ScoredRollout. The teacher scores each response under its own prompt."""

from topd_ray.teacher.actor import TeacherActor

__all__ = ["TeacherActor"]
