"""TrainBatch -> LossSums -> StepReport: losses of a micro-batch, and their descent."""

from topd_ray.learner.actor import LearnerActor

__all__ = ["LearnerActor"]
