"""Finished runs of an ablation, and what was asked of them before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from topd_ray.evaluation import SampledAccuracy

Measure = Literal["greedy", "avg", "pass", "equal_seconds"]
"""What two variants are compared by."""
Curve = Sequence[tuple[float, float]]
"""(optimizer steps or CPU seconds, accuracy from 0 to 1) of one run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What one finished run of one variant at one seed has left behind."""

    variant: str
    seed: int
    summary: Mapping[str, Any]
    """summary.json of the run."""
    metrics: Sequence[Mapping[str, Any]]
    """Lines of metrics.jsonl, one a step."""
    curve: Sequence[tuple[int, float]]
    """(step, accuracy) before, during and after training; accuracy from 0 to 1."""
    sampled: SampledAccuracy | None
    """Of the trained student; None where the study samples none."""

    @property
    def greedy(self) -> float:
        """Greedy accuracy after training, in percent."""
        return 100 * float(self.summary["accuracy_after"])

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all steps."""
        return float(self.summary["cpu_s"])

    @property
    def seconds_curve(self) -> Curve:
        """The curve over the CPU seconds of the steps done so far."""
        seconds = [float(line["step/cpu_s"]) for line in self.metrics]
        total_s = [0.0, *accumulate(seconds)]
        return [(total_s[step], accuracy) for step, accuracy in self.curve]

    def accuracy_at(self, cpu_s: float) -> float:
        """Return the accuracy (%) after so many CPU seconds.

        Between two evaluations it is on the straight line; behind the end of the run it
        is that of the end.
        """
        seconds, accuracies = zip(*self.seconds_curve, strict=True)
        return 100 * float(np.interp(cpu_s, seconds, accuracies))


Results = Mapping[str, Sequence[RunResult]]
"""Variant -> its runs, in the order of the seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two variants, compared seed by seed."""

    name: str
    """What the comparison asks."""
    of: str
    against: str
    by: Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationPlan:
    """What the report of an ablation says beside the results."""

    title: str
    baseline: str
    """The variant that every other is compared with."""
    study_seed: int
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's accuracy (%) by the name of the row."""
    comparisons: Sequence[Comparison] = ()
    """Fixed before the runs; the first is the primary one."""
    fresh: Sequence[int] = ()
    """Seeds whose warm starts played no part in the design of a variant."""


__all__ = [
    "AblationPlan",
    "Comparison",
    "Curve",
    "Measure",
    "Results",
    "RunResult",
]
