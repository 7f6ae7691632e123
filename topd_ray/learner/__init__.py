"""TrainBatch -> StepReport. The losses of micro-batches, and one descent a step."""

from topd_ray.learner.actor import LearnerActor

__all__ = ["LearnerActor"]
