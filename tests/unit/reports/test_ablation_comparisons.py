"""What a report says of runs at equal seconds, and of comparisons fixed before them."""

from typing import Any

import pytest
from scipy import stats

from topd_ray.evaluation import SampledAccuracy
from topd_ray.reports.ablation_comparisons import comparison_table, seconds_table
from topd_ray.reports.ablation_results import AblationPlan, Comparison, RunResult
from topd_ray.reports.ablation_takeovers import takeover_table
from topd_ray.reports.report import Table


def result(
    variant: str,
    seed: int,
    *,
    after: float,
    step_s: float = 1.0,
    avg: float = 0.5,
    taken_over: int = 0,
) -> RunResult:
    """Two steps with an evaluation after each: from 20 % over 30 % to `after`."""
    return RunResult(
        variant=variant,
        seed=seed,
        summary={
            "accuracy_after": after,
            "cpu_s": 2 * step_s,
            "num_taken_over": taken_over,
            "num_rollouts": 8,
            "teacher_tokens": 30,
            "trained_tokens": 120,
        },
        metrics=[
            {"step/cpu_s": step_s, "takeover/num": 0, "takeover/own_frac": 0.0},
            {"step/cpu_s": step_s, "takeover/num": 3, "takeover/own_frac": 0.25},
        ],
        curve=[(0, 0.2), (1, 0.3), (2, after)],
        sampled=SampledAccuracy(num_problems=9, samples=8, avg=avg, pass_any=0.9),
    )


OPD = [0.40, 0.50, 0.45, 0.60]
TAKEOVER = [0.47, 0.56, 0.55, 0.66]
RESULTS = {
    "opd": [result("opd", seed, after=after) for seed, after in enumerate(OPD)],
    "takeover": [
        # the last of them is cheaper than OPD
        result("takeover", seed, after=after, step_s=0.5 if seed == 3 else 2.0, avg=0.4)
        for seed, after in enumerate(TAKEOVER)
    ],
}


def plan(*measures: Any, fresh: tuple[int, ...] = ()) -> AblationPlan:
    return AblationPlan(
        title="t",
        baseline="opd",
        study_seed=0,
        comparisons=[
            Comparison(name=f"by {by}", of="takeover", against="opd", by=by)
            for by in measures
        ],
        fresh=fresh,
    )


def rows(table: Table) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_the_primary_comparison_stands_alone_and_the_others_are_corrected() -> None:
    table = comparison_table(RESULTS, plan("greedy", "greedy", "avg", "equal_seconds"))
    found = rows(table)
    theirs = stats.ttest_rel(TAKEOVER, OPD)
    assert [row["comparison"] for row in found] == [
        "by greedy",
        "by greedy",
        "by avg",
        "by equal_seconds",
    ]
    assert found[0]["difference, points"].value == pytest.approx(7.25)
    assert found[0]["positive"] == "4 of 4"
    assert found[0]["p, paired t"] == pytest.approx(theirs.pvalue)
    assert [row["outcome"] for row in found] == ["won", "won", "lost", "open"]
    assert found[2]["by"] == "avg@8"
    assert found[2]["difference, points"].value == pytest.approx(-10)
    # the smallest p, that of avg, counts four times; then three times, then three again
    assert found[2]["p, Holm"] == pytest.approx(4 * found[2]["p, paired t"])
    assert found[0]["p, Holm"] == pytest.approx(3 * theirs.pvalue)


def test_a_primary_comparison_is_decided_by_its_own_p() -> None:
    base = [result("opd", seed, after=after) for seed, after in enumerate(OPD)]
    gains = [0.01, 0.06, 0.05, 0.03]
    better = [
        result("takeover", seed, after=after + gain)
        for seed, (after, gain) in enumerate(zip(OPD, gains, strict=True))
    ]
    results = {"opd": base, "takeover": better}
    first, second = rows(comparison_table(results, plan("greedy", "greedy")))
    p = stats.ttest_1samp(gains, 0).pvalue
    assert p < 0.05 < 2 * p
    assert first["p, Holm"] == pytest.approx(2 * p)
    assert (first["outcome"], second["outcome"]) == ("won", "open")


def test_fresh_starts_are_compared_alone_too() -> None:
    table = comparison_table(RESULTS, plan("greedy", fresh=(1, 2)))
    _, alone = rows(table)
    assert alone["comparison"] == "fresh starts alone"
    assert alone["difference, points"].value == pytest.approx((6 + 10) / 2)
    assert alone["difference, points"].count == 2
    assert alone["positive"] == "2 of 2"
    assert alone["outcome"] is None


def test_two_runs_are_compared_where_the_sooner_ends() -> None:
    (row,) = rows(comparison_table(RESULTS, plan("equal_seconds")))
    # takeover has done one of its two steps when OPD ends after 2 s: 30 %; the cheap
    # one ends after 1 s, where OPD has 30 %
    gains = [30 - 40, 30 - 50, 30 - 45, 66 - 30]
    assert row["difference, points"].value == pytest.approx(sum(gains) / 4)


def test_every_variant_is_read_where_the_baseline_ends() -> None:
    opd, takeover = rows(seconds_table(RESULTS, plan()))
    assert opd["CPU, s"].value == pytest.approx(2)
    assert opd["against opd, points"] is None
    assert takeover["against opd, s"].value == pytest.approx((3 * 2 - 1) / 4)
    assert takeover["accuracy when opd ends, %"].value == pytest.approx(
        (30 + 30 + 30 + 66) / 4
    )
    assert takeover["ends earlier"] == "1 of 4"
    assert takeover["against opd, points"].value == pytest.approx(
        (30 + 30 + 30 + 66 - 40 - 50 - 45 - 60) / 4
    )


def test_an_accuracy_is_on_the_line_between_two_evaluations() -> None:
    run = result("opd", 0, after=0.5, step_s=4.0)
    assert run.accuracy_at(2.0) == pytest.approx(25)
    assert run.accuracy_at(7.0) == pytest.approx(45)
    assert run.accuracy_at(100.0) == pytest.approx(50)


def test_takeovers_are_counted_where_there_are_any() -> None:
    taken = [result("takeover", seed, after=0.5, taken_over=6) for seed in range(2)]
    (row,) = rows(takeover_table({"opd": RESULTS["opd"], "takeover": taken}))
    assert row["variant"] == "takeover"
    assert row["rollouts taken over, %"].value == pytest.approx(75)
    # the step without a takeover has no fork to count
    assert row["own tokens before the fork, %"].value == pytest.approx(25)
    assert row["teacher tokens a trained token"].value == pytest.approx(0.25)
