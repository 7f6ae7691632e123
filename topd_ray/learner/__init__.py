"""TrainBatch -> StepReport. The losses of micro-batches, one optimizer step a step."""

from topd_ray.learner.actor import LearnerActor

__all__ = ["LearnerActor"]
