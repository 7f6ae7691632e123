"""Results of finished runs -> Report: the tables and curves of the ablation."""

from collections.abc import Mapping, Sequence

import numpy as np

from topd_ray.reports.ablation_comparisons import comparison_table, seconds_table
from topd_ray.reports.ablation_figures import (
    WARM_START,
    accuracy_plot,
    curve_plot,
    seconds_plot,
)
from topd_ray.reports.ablation_results import AblationPlan, Results, RunResult
from topd_ray.reports.ablation_samples import sample_table
from topd_ray.reports.ablation_takeovers import takeover_table
from topd_ray.reports.report import Cell, Report, Table
from topd_ray.statistics import paired_difference, t_interval


def describe(results: Results, plan: AblationPlan) -> Report:
    """Return the tables, the curves and the numbers of finished runs."""
    after = {name: [run.greedy for run in runs] for name, runs in results.items()}
    # Of one variant: all start from the same students, seed by seed.
    warm = [100 * run.summary["accuracy_before"] for run in results[plan.baseline]]
    return Report(
        study="ablation",
        title=plan.title,
        summary=[_summary(results[plan.baseline])],
        tables=_tables(results, after, warm, plan),
        plots=[
            accuracy_plot(after, warm, baseline=plan.baseline),
            curve_plot(
                {name: [run.curve for run in runs] for name, runs in results.items()},
                baseline=plan.baseline,
            ),
            seconds_plot(
                {
                    name: [run.seconds_curve for run in runs]
                    for name, runs in results.items()
                },
                baseline=plan.baseline,
            ),
        ],
        numbers={
            "accuracy_after": after,
            "accuracy_before": warm,
            "seeds": [run.seed for run in results[plan.baseline]],
            **_run_numbers(results),
        },
    )


def _run_numbers(results: Results) -> dict[str, object]:
    return {
        "cpu_s": {name: [run.cpu_s for run in runs] for name, runs in results.items()},
        "sampled": {
            name: [run.sampled for run in runs] for name, runs in results.items()
        },
    }


def _summary(runs: Sequence[RunResult]) -> str:
    problems = runs[0].summary["num_eval"]
    return (
        f"{len(runs)} seeds, each with its warm start, equal steps and prompts; greedy"
        f" accuracy (%) on {problems:,} held-out problems. Means with 95 % t-intervals"
        " over seeds; differences are paired by seed, p from a paired t-test,"
        " uncorrected for the number of rows."
    )


def _tables(
    results: Results,
    after: Mapping[str, Sequence[float]],
    warm: Sequence[float],
    plan: AblationPlan,
) -> list[Table]:
    """Return the tables; those that need comparisons, samples or takeovers last."""
    runs = [run for group in results.values() for run in group]
    tables = [_accuracy_table(results, after, warm, plan)]
    if plan.comparisons:
        tables.append(comparison_table(results, plan))
    if all(run.sampled is not None for run in runs):
        tables.append(sample_table(results, plan))
    tables.append(seconds_table(results, plan))
    if any(run.summary["num_taken_over"] for run in runs):
        tables.append(takeover_table(results))
    return [*tables, _seed_table(results)]


def _accuracy_table(
    results: Results,
    after: Mapping[str, Sequence[float]],
    warm: Sequence[float],
    plan: AblationPlan,
) -> Table:
    """Return mean, difference from the baseline, cost, and the paper's number."""
    empty: list[Cell] = [None] * 7
    rows: list[list[Cell]] = [[WARM_START, t_interval(warm), *empty]]
    rows += [_accuracy_row(results[name], after, plan) for name in results]
    if plan.paper:
        for row in rows:
            row.append(plan.paper.get(str(row[0])))
    return Table(
        name="accuracy",
        title="Accuracy after training",
        columns=[
            "variant",
            "accuracy, %",
            f"against {plan.baseline}, points",
            "p",
            "mean over the curve, %",
            "the student decodes",
            "the teacher decodes",
            "trained tokens",
            "CPU, s",
            *(["paper, %"] if plan.paper else []),
        ],
        rows=rows,
        decimals=1,
        note=(
            "The paper's numbers are another world's (AIME and HMMT, one run each, 90"
            " problems)."
            if plan.paper
            else ""
        ),
    )


def _accuracy_row(
    runs: Sequence[RunResult],
    after: Mapping[str, Sequence[float]],
    plan: AblationPlan,
) -> list[Cell]:
    name = runs[0].variant
    difference: Cell = None
    p: Cell = None
    if name != plan.baseline:
        paired = paired_difference(
            after[plan.baseline], after[name], seed=plan.study_seed
        )
        difference = paired.mean
        p = paired.p_t
    return [
        name,
        t_interval(after[name]),
        difference,
        p,
        t_interval([_mean_accuracy(run) for run in runs]),
        _rounded_mean(runs, "student_tokens"),
        _rounded_mean(runs, "teacher_tokens"),
        _rounded_mean(runs, "trained_tokens"),
        _rounded_mean(runs, "cpu_s"),
    ]


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
            "CPU, s",
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
        run.greedy,
        summary["steps"],
        summary["student_tokens"],
        summary["teacher_tokens"],
        summary["trained_tokens"],
        summary["num_candidates"],
        summary["num_divergent"],
        run.cpu_s,
        summary["wall_s"],
    ]


__all__ = ["describe"]
