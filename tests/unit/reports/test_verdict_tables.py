"""The page of the verdicts against numbers that one can count."""

import math

import numpy as np
import pytest

from topd_ray.reports.report import Report
from topd_ray.reports.verdict_tables import JudgedWindows, Verdict, analyse

FREE = Verdict("surprise")
NEAR = Verdict("D_OT", 8)
FAR = Verdict("D_OT", 16)


def judged() -> JudgedWindows:
    """Three forks and two wording windows; the last fork's plan did not converge."""
    return JudgedWindows(
        prompts=["p0", "p0", "p1", "p1", "p2"],
        rollouts=["r0", "r0", "r1", "r2", "r3"],
        positions_W=np.arange(5, dtype=np.int32),
        before=["we take "] * 5,
        tokens=["3", "hence", "so", "4", "5"],
        is_fork_W=np.array([True, False, False, True, True]),
        scores={
            FREE: np.array([9, 1, 2, 8, 7], np.float32),
            NEAR: np.array([0.4, 0.1, 0.3, 0.2, math.nan], np.float32),
            FAR: np.array([0.1, 0.1, 0.1, 0.1, 0.1], np.float32),
        },
    )


@pytest.fixture
def report() -> Report:
    return analyse(
        judged(),
        num_high_loss=12,
        reference=FAR,
        rule="a fork is a wrong word.",
        seed=0,
        resamples=20,
    )


def test_every_high_loss_position_is_counted_once(report: Report) -> None:
    rows = dict(report.tables[0].rows)
    assert rows == {
        "high-loss positions": 12,
        "of unknown truth, left out": 7,
        "without a converged plan, left out": 1,
        "forks": 2,
        "wording": 2,
    }


def test_all_verdicts_are_compared_on_the_same_windows(report: Report) -> None:
    table = report.tables[1]
    assert table.columns[-1] == "minus that of D_OT, K 16"
    areas = {(row[0], row[1]): row[2].value for row in table.rows}
    assert areas == {("surprise", None): 1.0, ("D_OT", 8): 0.75, ("D_OT", 16): 0.5}
    gains = [row[3] and row[3].value for row in table.rows]
    assert gains == [0.5, 0.25, None]
    assert all(row[2].count == 4 for row in table.rows)


def test_the_summary_names_the_best_of_both_kinds(report: Report) -> None:
    text = " ".join(report.summary)
    assert "3 rollouts of 2 prompts" in text
    assert "surprise, 1.000" in text
    assert "D_OT, K 8, 0.750" in text


def test_the_figure_has_a_row_for_each_verdict(report: Report) -> None:
    (plot,) = report.plots
    (axes,) = plot.figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["surprise", "D_OT, K 8", "D_OT, K 16"]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [float(point.get_xdata()[0]) for point in points] == [1.0, 0.75, 0.5]
