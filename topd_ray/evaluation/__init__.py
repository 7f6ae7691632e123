"""Accuracy of the student: held-out problems in a run, and `topd eval` in `harness`.

`greedy_accuracy` grades greedy answers while a run trains, `sampled_accuracy` several
samples a problem after it. The package `harness` runs
lm-evaluation-harness on our engines; importing it takes seconds, so nothing here does.
"""

from topd_ray.evaluation.accuracy import Accuracy
from topd_ray.evaluation.greedy import greedy_accuracy
from topd_ray.evaluation.sampled import SampledAccuracy, sampled_accuracy

__all__ = ["Accuracy", "SampledAccuracy", "greedy_accuracy", "sampled_accuracy"]
