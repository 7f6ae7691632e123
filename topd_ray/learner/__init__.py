"""TrainBatch -> LossSums -> StepReport: losses of a micro-batch, and the step that descends them."""

from topd_ray.learner.actor import LearnerActor

__all__ = ["LearnerActor"]
