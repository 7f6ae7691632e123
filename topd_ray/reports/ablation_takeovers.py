"""How often, where and at what price the teacher took rollouts over."""

import math

import numpy as np

from topd_ray.reports.ablation_results import Results, RunResult
from topd_ray.reports.report import Cell, Table
from topd_ray.statistics import t_interval


def takeover_table(results: Results) -> Table:
    """Return a row for each variant that took a rollout over."""
    rows: list[list[Cell]] = [
        [
            name,
            t_interval([_taken_over(run) for run in runs]),
            t_interval([_own(run) for run in runs]),
            t_interval([_teacher_tokens(run) for run in runs]),
        ]
        for name, runs in results.items()
        if any(run.summary["num_taken_over"] for run in runs)
    ]
    return Table(
        name="takeovers",
        title="Takeovers",
        columns=[
            "variant",
            "rollouts taken over, %",
            "own tokens before the fork, %",
            "teacher tokens a trained token",
        ],
        rows=rows,
        decimals=2,
        note=(
            "Own tokens: of a rollout that was taken over, the share of the student's"
            " tokens that stayed. Teacher tokens are those that it decoded. Means over"
            " seeds with 95 % t-intervals."
        ),
    )


def _taken_over(run: RunResult) -> float:
    """Return the share of rollouts that were taken over, in percent."""
    return 100 * float(run.summary["num_taken_over"] / run.summary["num_rollouts"])


def _own(run: RunResult) -> float:
    """Return the student's mean share of the tokens of a takeover, in percent.

    nan where no rollout was taken over.
    """
    counts = [line["takeover/num"] for line in run.metrics]
    if not any(counts):
        return math.nan
    forks = [line["takeover/own_frac"] for line in run.metrics]
    return 100 * float(np.average(forks, weights=counts))


def _teacher_tokens(run: RunResult) -> float:
    return float(run.summary["teacher_tokens"] / run.summary["trained_tokens"])


__all__ = ["takeover_table"]
