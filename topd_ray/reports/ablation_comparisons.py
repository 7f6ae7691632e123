"""Comparisons that were fixed before the runs, and all variants at equal seconds."""

from collections.abc import Sequence

from topd_ray.reports.ablation_results import (
    AblationPlan,
    Comparison,
    Results,
    RunResult,
)
from topd_ray.reports.report import Cell, Table
from topd_ray.statistics import (
    LEVEL,
    PairedDifference,
    holm,
    paired_difference,
    t_interval,
)

_BY = {
    "greedy": "greedy",
    "avg": "avg@{k}",
    "pass": "pass@{k}",
    "equal_seconds": "greedy at equal seconds",
}


def comparison_table(results: Results, plan: AblationPlan) -> Table:
    """Return the comparisons in their order, each with its fresh starts alone."""
    return Table(
        name="comparisons",
        title="Primary and secondary comparisons",
        columns=[
            "comparison",
            "of",
            "against",
            "by",
            "difference, points",
            "positive",
            "p, Wilcoxon",
            "p, paired t",
            "p, Holm",
            "outcome",
        ],
        rows=_comparison_rows(results, plan),
        decimals=2,
        note=(
            "Fixed before the runs, in this order. The first is the primary comparison"
            " and is decided by its own p; the others by p after Holm's correction over"
            f" all of them, at {1 - LEVEL:.2f}. Equal seconds are those at which the"
            " sooner of the two runs of a seed ends."
        ),
    )


def _comparison_rows(results: Results, plan: AblationPlan) -> list[list[Cell]]:
    paired = [
        _paired(results, comparison, plan.study_seed) for comparison in plan.comparisons
    ]
    corrected = holm([difference.p_t for difference in paired])
    rows: list[list[Cell]] = []
    for number, comparison in enumerate(plan.comparisons):
        difference = paired[number]
        # The primary comparison stands alone, so its own p decides.
        deciding_p = corrected[number] if number else difference.p_t
        rows.append(
            [
                comparison.name,
                comparison.of,
                comparison.against,
                _by(results, comparison),
                *_numbers(difference),
                corrected[number],
                _outcome(difference, deciding_p),
            ]
        )
        if plan.fresh:
            alone = _paired(results, comparison, plan.study_seed, plan.fresh)
            blank = ["fresh starts alone", "", "", ""]
            rows.append([*blank, *_numbers(alone), None, None])
    return rows


def seconds_table(results: Results, plan: AblationPlan) -> Table:
    """Return CPU seconds, and accuracies where the baseline's run of a seed ends."""
    return Table(
        name="seconds",
        title="At equal seconds",
        columns=[
            "variant",
            "CPU, s",
            f"against {plan.baseline}, s",
            f"accuracy when {plan.baseline} ends, %",
            f"against {plan.baseline}, points",
            "p",
            "ends earlier",
        ],
        rows=[_seconds_row(results, name, plan) for name in results],
        decimals=1,
        note=(
            "CPU seconds of the run's process in its steps, evaluations left out; with"
            " `cluster.placement=inline` that is all that a run computes. Each run's"
            " greedy accuracy is read off its own curve, on straight lines between"
            f" evaluations, at the seconds at which the run of {plan.baseline} with"
            " the same seed ends. A run that ends earlier counts with its last"
            " accuracy; the last column says how many did."
        ),
    )


def _seconds_row(results: Results, name: str, plan: AblationPlan) -> list[Cell]:
    base = results[plan.baseline]
    runs = results[name]
    end_s = [run.cpu_s for run in base]
    cpu_s = [run.cpu_s for run in runs]
    pairs = list(zip(runs, end_s, strict=True))
    at_end = [run.accuracy_at(seconds) for run, seconds in pairs]
    num_earlier = sum(run.cpu_s < seconds for run, seconds in pairs)
    cost: Cell = None
    gain: Cell = None
    p: Cell = None
    if name != plan.baseline:
        cost = paired_difference(end_s, cpu_s, seed=plan.study_seed).mean
        greedy = [run.greedy for run in base]
        paired = paired_difference(greedy, at_end, seed=plan.study_seed)
        gain = paired.mean
        p = paired.p_t
    accuracy = t_interval(at_end)
    earlier = f"{num_earlier} of {len(runs)}"
    return [name, t_interval(cpu_s), cost, accuracy, gain, p, earlier]


def _paired(
    results: Results,
    comparison: Comparison,
    study_seed: int,
    seeds: Sequence[int] | None = None,
) -> PairedDifference:
    """Return `of` minus `against` in points, over all seeds or over those given."""
    pairs = [
        _values(of, against, comparison)
        for of, against in zip(
            results[comparison.of], results[comparison.against], strict=True
        )
        if seeds is None or of.seed in seeds
    ]
    return paired_difference(
        [against for _, against in pairs], [of for of, _ in pairs], seed=study_seed
    )


def _values(
    of: RunResult, against: RunResult, comparison: Comparison
) -> tuple[float, float]:
    """Return what a pair of runs is compared by, in percent."""
    if comparison.by == "greedy":
        return of.greedy, against.greedy
    if comparison.by == "equal_seconds":
        end_s = min(of.cpu_s, against.cpu_s)
        return of.accuracy_at(end_s), against.accuracy_at(end_s)
    assert of.sampled is not None, "the study file is refused without samples"
    assert against.sampled is not None, "as above"
    if comparison.by == "avg":
        return 100 * of.sampled.avg, 100 * against.sampled.avg
    return 100 * of.sampled.pass_any, 100 * against.sampled.pass_any


def _by(results: Results, comparison: Comparison) -> str:
    sampled = results[comparison.of][0].sampled
    return _BY[comparison.by].format(k=sampled.samples if sampled else "")


def _numbers(paired: PairedDifference) -> list[Cell]:
    num_pairs = paired.mean.count
    positive = f"{paired.num_positive} of {num_pairs}"
    return [paired.mean, positive, paired.p_wilcoxon, paired.p_t]


def _outcome(paired: PairedDifference, p: float) -> str:
    if not p < 1 - LEVEL:  # nan too: there is no test
        return "open"
    return "won" if paired.mean.value > 0 else "lost"


__all__ = ["comparison_table", "seconds_table"]
