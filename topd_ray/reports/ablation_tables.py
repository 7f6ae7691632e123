"""Results of finished runs -> Report: the tables and curves of the ablation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topd_ray.evaluation import SampledAccuracy
from topd_ray.reports.ablation_figures import WARM_START, accuracy_plot, curve_plot
from topd_ray.reports.report import Cell, Report, Table
from topd_ray.statistics import Estimate, paired_difference, t_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What one finished run of one variant at one seed has left behind."""

    variant: str
    seed: int
    summary: Mapping[str, Any]
    """summary.json of the run."""
    curve: Sequence[tuple[int, float]]
    """(step, accuracy) before, during and after training; accuracy from 0 to 1."""
    sampled: SampledAccuracy | None
    """Of the trained student; None where the study samples none."""


Results = Mapping[str, Sequence[RunResult]]
"""Variant -> its runs, in the order of the seeds."""


def describe(
    results: Results,
    *,
    title: str,
    baseline: str,
    paper: Mapping[str, float],
    study_seed: int,
) -> Report:
    """Return the tables, the curves and the numbers of finished runs.

    Every other variant is compared with `baseline`, seed by seed; `paper` holds the
    paper's accuracy (%) of the same rows.
    """
    after = {
        name: [100 * run.summary["accuracy_after"] for run in runs]
        for name, runs in results.items()
    }
    # Of one variant: all start from the same students, seed by seed.
    warm = [100 * run.summary["accuracy_before"] for run in results[baseline]]
    seeds = [run.seed for run in results[baseline]]
    problems = results[baseline][0].summary["num_eval"]
    curves = {name: [run.curve for run in runs] for name, runs in results.items()}
    return Report(
        study="ablation",
        title=title,
        summary=[
            (
                f"{len(seeds)} seeds, each with its warm start, equal"
                f" steps and prompts; greedy accuracy (%) on {problems:,} held-out"
                " problems. Means with 95 % t-intervals over seeds; differences are"
                " paired by seed, p from a paired t-test, uncorrected for the number"
                " of rows."
            ),
        ],
        tables=[
            _accuracy_table(results, after, warm, baseline, paper, study_seed),
            _seed_table(results),
        ],
        plots=[
            accuracy_plot(after, warm, baseline=baseline),
            curve_plot(curves, baseline=baseline),
        ],
        numbers={"accuracy_after": after, "accuracy_before": warm, "seeds": seeds},
    )


def _accuracy_table(
    results: Results,
    after: Mapping[str, Sequence[float]],
    warm: Sequence[float],
    baseline: str,
    paper: Mapping[str, float],
    study_seed: int,
) -> Table:
    """Return mean, difference from the baseline, cost, and the paper's number."""
    empty: list[Cell] = [None] * 7
    rows: list[list[Cell]] = [[WARM_START, t_interval(warm), *empty]]
    for name, runs in results.items():
        difference: Estimate | None = None
        p_value: float | None = None
        if name != baseline:
            paired = paired_difference(after[baseline], after[name], seed=study_seed)
            difference = paired.mean
            p_value = paired.p_t
        rows.append(
            [
                name,
                t_interval(after[name]),
                difference,
                p_value,
                t_interval([_mean_accuracy(run) for run in runs]),
                _rounded_mean(runs, "student_tokens"),
                _rounded_mean(runs, "teacher_tokens"),
                _rounded_mean(runs, "trained_tokens"),
                _rounded_mean(runs, "wall_s"),
            ]
        )
    if paper:
        for row in rows:
            row.append(paper.get(str(row[0])))
    return Table(
        name="accuracy",
        title="Accuracy after training",
        columns=[
            "variant",
            "accuracy, %",
            f"against {baseline}, points",
            "p",
            "mean over the curve, %",
            "the student decodes",
            "the teacher decodes",
            "trained tokens",
            "wall, s",
            *(["paper, %"] if paper else []),
        ],
        rows=rows,
        decimals=1,
        note=(
            "The paper's numbers are another world's (AIME and HMMT, one run each, 90"
            " problems)."
            if paper
            else ""
        ),
    )


def _mean_accuracy(run: RunResult) -> float:
    """Return the mean accuracy (%) over all evaluations: how early the run learned."""
    return 100 * float(np.mean([accuracy for _, accuracy in run.curve]))


def _rounded_mean(runs: Sequence[RunResult], field: str) -> int:
    return round(float(np.mean([run.summary[field] for run in runs])))


def _seed_table(results: Results) -> Table:
    rows: list[list[Cell]] = []
    for runs in results.values():
        rows += [_seed_row(run) for run in runs]
    return Table(
        name="runs",
        title="Every run",
        columns=[
            "variant",
            "seed",
            "before, %",
            "after, %",
            "steps",
            "student tokens",
            "teacher tokens",
            "trained tokens",
            "candidates",
            "divergent",
            "wall, s",
        ],
        rows=rows,
        decimals=1,
        shown=len(rows) <= len(results),  # one seed: the table is the result
    )


def _seed_row(run: RunResult) -> list[Cell]:
    summary = run.summary
    return [
        run.variant,
        run.seed,
        100 * summary["accuracy_before"],
        100 * summary["accuracy_after"],
        summary["steps"],
        summary["student_tokens"],
        summary["teacher_tokens"],
        summary["trained_tokens"],
        summary["num_candidates"],
        summary["num_divergent"],
        summary["wall_s"],
    ]


__all__ = ["Results", "RunResult", "describe"]
