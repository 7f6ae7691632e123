"""Did the student get better? Greedy answers to held-out problems, compared with the truth."""

from topd_ray.evaluation.accuracy import Accuracy
from topd_ray.evaluation.ask import ask

__all__ = ["Accuracy", "ask"]
