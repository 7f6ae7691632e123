"""Tables 1 and 2: every objective from the same warm starts, seed by seed, on held-out
problems.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topd_ray.config import load_config
from topd_ray.errors import UserError
from topd_ray.reports.provenance import make_provenance
from topd_ray.reports.report import Cell, Plot, Report, Table, write_report
from topd_ray.reports.style import BLUE, GREY, INK, ORANGE, drawing, new_figure
from topd_ray.statistics import Estimate, paired_difference, t_interval
from topd_ray.studies.config import AblationConfig, StudyConfig
from topd_ray.studies.planned_runs import PlannedRun, carry_out, named

logger = logging.getLogger(__name__)

Results = dict[str, list[PlannedRun]]
"""Variant -> its runs, in the order of the seeds."""


def run(study: StudyConfig) -> None:
    """Do the runs that are missing, then write the report. Raises UserError,
    TopdError.
    """
    if study.ablation is None:
        raise UserError(
            "the study file has no `ablation` section; configs/studies has an example"
        )
    planned = plan_runs(study, study.ablation)
    carry_out(planned, processes=study.ablation.processes, say=logger.info)
    results: Results = {}
    for one in planned:
        results.setdefault(one.variant, []).append(one)
    provenance = make_provenance(
        study.load_run(),
        _section(study.ablation),
        study_seed=study.seed,
        wall_s=sum(
            one.summary["wall_s"] for one in planned
        ),  # as if one after the other
    )
    report = make_report(results, study.ablation, seed=study.seed)
    logger.info("written: %s", write_report(report, study.folder, provenance))


def _section(ablation: AblationConfig) -> dict[str, Any]:
    """The study file's section, with configs by their names: where they lie is this
    machine's.
    """
    section = ablation.model_dump(mode="json")
    for variant in section["variants"].values():
        variant["config"] = variant["config"] and Path(variant["config"]).name
    return section


def plan_runs(study: StudyConfig, ablation: AblationConfig) -> list[PlannedRun]:
    """All runs, seeds outermost: an interrupted ablation compares like with like."""
    planned = []
    for seed, student in zip(ablation.seeds, ablation.students, strict=True):
        for name, variant in ablation.variants.items():
            config = load_config(
                Path(variant.config or study.run),
                [
                    *study.overrides,
                    *ablation.overrides,
                    *variant.overrides,
                    f"run.seed={seed}",
                    f"learner.model={student}",
                ],
            )
            planned.append(named(name, seed, config, study.folder / "runs"))
    return planned


def make_report(results: Results, ablation: AblationConfig, *, seed: int) -> Report:
    """Tables, curves and numbers of finished runs."""
    after = {
        name: [100 * r.summary["accuracy_after"] for r in runs]
        for name, runs in results.items()
    }
    warm = [100 * run.summary["accuracy_before"] for run in results[ablation.baseline]]
    problems = results[ablation.baseline][0].summary["num_eval"]
    return Report(
        study="ablation",
        title="Tables 1 and 2: what each objective is worth",
        summary=[
            (
                f"{len(ablation.seeds)} seeds, each with a warm start of its own, equal"
                f" steps and prompts; greedy accuracy (%) on {problems:,} held-out"
                " problems. Means with 95 % t-intervals over seeds; differences are"
                " paired by seed, p from a paired t-test, uncorrected for the number"
                " of rows."
            ),
        ],
        tables=[
            _accuracy_table(results, after, warm, ablation, seed=seed),
            _seed_table(results, ablation),
        ],
        plots=[
            Plot(
                name="accuracy",
                caption=(
                    "Accuracy after training, and the same against the baseline: points"
                    " are seeds, bars 95 % intervals."
                ),
                figure=_accuracy_figure(after, warm, ablation.baseline),
            ),
            Plot(
                name="curves",
                caption="Accuracy while training, mean over seeds.",
                figure=_curve_figure(results, ablation),
            ),
        ],
        numbers={
            "accuracy_after": after,
            "accuracy_before": warm,
            "seeds": ablation.seeds,
        },
    )


def _accuracy_table(
    results: Results,
    after: dict[str, list[float]],
    warm: list[float],
    ablation: AblationConfig,
    *,
    seed: int,
) -> Table:
    """Mean, paired difference from the baseline, cost, and the paper's number."""
    rows: list[list[Cell]] = [
        [
            "warm start",
            t_interval(warm),
            None,
            None,
            None,
            None,
            None,
            ablation.reference.get("warm start"),
        ]
    ]
    for name, runs in results.items():
        summaries = [run.summary for run in runs]
        difference: Estimate | None = None
        p_value: float | None = None
        if name != ablation.baseline:
            paired = paired_difference(after[ablation.baseline], after[name], seed=seed)
            difference, p_value = paired.mean, paired.p_t
        rows.append(
            [
                name,
                t_interval(after[name]),
                difference,
                p_value,
                t_interval(_curve_means(runs)),
                round(float(np.mean([one["student_tokens"] for one in summaries]))),
                round(float(np.mean([one["wall_s"] for one in summaries]))),
                ablation.reference.get(name),
            ]
        )
    return Table(
        name="accuracy",
        title="Accuracy after training",
        columns=[
            "variant",
            "accuracy, %",
            f"against {ablation.baseline}, points",
            "p",
            "mean over the curve, %",
            "student tokens",
            "wall, s",
            "paper, %",
        ],
        rows=rows,
        decimals=1,
        note=(
            "The paper's numbers are another world's (AIME and HMMT, one run each, 90"
            " problems)."
        ),
    )


def _curve_means(runs: Sequence[PlannedRun]) -> list[float]:
    """Mean accuracy (%) over the evaluations of each run: how early it learned."""
    return [100 * float(np.mean([share for _, share in run.curve])) for run in runs]


def _seed_table(results: Results, ablation: AblationConfig) -> Table:
    rows: list[list[Cell]] = [
        [
            run.variant,
            run.seed,
            100 * summary["accuracy_before"],
            100 * summary["accuracy_after"],
            summary["steps"],
            summary["student_tokens"],
            summary["trained_tokens"],
            summary["num_candidates"],
            summary["num_divergent"],
            summary["wall_s"],
        ]
        for runs in results.values()
        for run in runs
        for summary in [run.summary]
    ]
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
            "trained tokens",
            "candidates",
            "divergent",
            "wall, s",
        ],
        rows=rows,
        decimals=1,
        shown=len(rows) <= len(ablation.variants),  # one seed: the table is the result
    )


def _accuracy_figure(
    after: dict[str, list[float]], warm: list[float], baseline: str
) -> Figure:
    """Accuracies on the left; on the right what is left of them when seeds are
    paired.
    """
    values = {"warm start": warm} | after
    with drawing():
        figure, (left, right) = new_figure(
            1, 2, width_in=9.0, height_in=0.9 + 0.26 * len(values), sharey=True
        )
        for row, (name, accuracies) in enumerate(reversed(values.items())):
            _row(left, row, accuracies)
            if name not in ("warm start", baseline):
                _row(right, row, np.subtract(accuracies, after[baseline]).tolist())
        left.set_yticks(range(len(values)), list(reversed(values)))
        left.set_xlabel("accuracy on held-out problems, %")
        right.axvline(0, color=INK, linewidth=1)
        right.set_xlabel(f"against {baseline}, paired by seed, points")
        for axes in (left, right):
            axes.grid(axis="x")
    return figure


def _row(axes: Axes, row: int, values: list[float]) -> None:
    estimate = t_interval(values)
    axes.plot(
        [estimate.low, estimate.high], [row, row], color=BLUE, linewidth=3, alpha=0.35
    )
    axes.plot(values, [row] * len(values), "o", color=GREY, markersize=3)
    axes.plot(estimate.value, row, "D", color=BLUE, markersize=5)


def _curve_figure(results: Results, ablation: AblationConfig) -> Figure:
    with drawing():
        columns = 4
        rows = -(-len(results) // columns)
        figure, panels = new_figure(
            rows,
            columns,
            width_in=8.4,
            height_in=0.6 + 1.5 * rows,
            sharex=True,
            sharey=True,
        )
        baseline = _mean_curve(results[ablation.baseline])
        for axes, (name, runs) in zip(panels, results.items(), strict=False):
            axes.plot(*baseline, color=GREY, linewidth=1, label=ablation.baseline)
            axes.plot(*_mean_curve(runs), color=ORANGE, marker="o", markersize=3)
            axes.set_title(name, fontsize=8)
            axes.grid()
        for axes in panels[len(results) :]:
            axes.set_visible(False)
        figure.supxlabel("optimizer steps", fontsize=9)
        figure.supylabel("accuracy, %", fontsize=9)
    return figure


def _mean_curve(runs: Sequence[PlannedRun]) -> tuple[list[int], Any]:
    curves = [run.curve for run in runs]
    steps = [step for step, _ in curves[0]]
    return steps, 100 * np.mean(
        [[share for _, share in curve] for curve in curves], axis=0
    )
