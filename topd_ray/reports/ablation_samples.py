"""avg@k and pass@k of every variant, against the baseline."""

from collections.abc import Sequence

from topd_ray.evaluation import SampledAccuracy
from topd_ray.reports.ablation_results import AblationPlan, Results, RunResult
from topd_ray.reports.report import Cell, Table
from topd_ray.statistics import paired_difference, t_interval


def sample_table(results: Results, plan: AblationPlan) -> Table:
    """Return the table; every run has samples."""
    first = _sampled(results[plan.baseline])[0]
    rows: list[list[Cell]] = []
    for name, runs in results.items():
        row: list[Cell] = [name]
        for field in ("avg", "pass_any"):
            values = _percent(runs, field)
            row += [t_interval(values), None, None]
            if name != plan.baseline:
                base = _percent(results[plan.baseline], field)
                paired = paired_difference(base, values, seed=plan.study_seed)
                row[-2:] = [paired.mean, paired.p_t]
        rows.append(row)
    return Table(
        name="samples",
        title="Sampled answers after training",
        columns=[
            "variant",
            *_columns("avg", first, plan),
            *_columns("pass", first, plan),
        ],
        rows=rows,
        decimals=1,
        note=(
            f"{first.samples} samples at temperature 1 to each of"
            f" {first.num_problems:,} held-out problems: avg@k is the share of right"
            " samples, pass@k that of problems with a right one."
        ),
    )


def _columns(name: str, first: SampledAccuracy, plan: AblationPlan) -> list[str]:
    measure = f"{name}@{first.samples}"
    return [
        f"{measure}, %",
        f"{measure} against {plan.baseline}, points",
        f"p of {measure}",
    ]


def _percent(runs: Sequence[RunResult], field: str) -> list[float]:
    return [100 * float(getattr(sampled, field)) for sampled in _sampled(runs)]


def _sampled(runs: Sequence[RunResult]) -> list[SampledAccuracy]:
    return [run.sampled for run in runs if run.sampled is not None]


__all__ = ["sample_table"]
