"""Stages put together into the four kinds of actor. Plain classes: spawn.py makes them
remote.

Each method returns its payload first and a receipt second; the driver fetches receipts
only.
"""

from topd_ray.actors.learner import LearnerWorker
from topd_ray.actors.prober import ProbeWorker
from topd_ray.actors.rollout import RolloutWorker
from topd_ray.actors.teacher import TeacherWorker

__all__ = ["LearnerWorker", "ProbeWorker", "RolloutWorker", "TeacherWorker"]
