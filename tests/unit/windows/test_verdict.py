import math

import numpy as np
import pytest

from tests.make import probes
from topd_ray.config import DivergenceConfig
from topd_ray.messages import HIGH, LOW, RANDOM
from topd_ray.windows import (
    RecentDistances,
    divergent,
    solved_distances,
    threshold_group,
)


def test_the_threshold_is_the_quantile_of_what_was_seen() -> None:
    recent = RecentDistances(DivergenceConfig(quantile=0.3))
    recent.add(float(d) for d in range(11))
    assert recent.threshold() == pytest.approx(3.0)


def test_only_the_last_history_candidates_count() -> None:
    recent = RecentDistances(DivergenceConfig(quantile=0.5, history=3))
    recent.add([100.0, 1.0, 2.0, 3.0])
    assert recent.values == [1.0, 2.0, 3.0]
    assert recent.threshold() == 2.0


def test_without_history_there_is_no_threshold() -> None:
    assert RecentDistances(DivergenceConfig()).threshold() is None


def test_an_unsolved_window_leaves_no_trace_in_the_history() -> None:
    recent = RecentDistances(DivergenceConfig())
    recent.add([math.nan, 0.5])
    assert recent.values == [0.5]


def test_a_restored_history_judges_as_the_old_one() -> None:
    config = DivergenceConfig(history=5)
    recent = RecentDistances(config)
    recent.add([0.1, 0.9, 0.4, 0.7, 0.2, 0.3])
    assert RecentDistances(config, recent.values).threshold() == recent.threshold()


def test_an_absolute_rule_needs_no_history() -> None:
    config = DivergenceConfig(rule="absolute", threshold=0.25)
    assert RecentDistances(config).threshold() == 0.25


def test_the_low_loss_rule_takes_the_upper_quartile_of_low_loss_positions() -> None:
    config = DivergenceConfig(rule="low_loss_q75")
    recent = RecentDistances(config)
    assert recent.threshold() is None
    recent.add([0.4, 0.0, 0.2, 0.1, 0.3])
    assert recent.threshold() == pytest.approx(0.3)


def test_each_rule_names_the_group_that_sets_its_threshold() -> None:
    assert threshold_group(DivergenceConfig(rule="low_loss_q75")) == LOW
    assert threshold_group(DivergenceConfig(rule="quantile")) == HIGH
    assert threshold_group(DivergenceConfig(rule="absolute", threshold=0.1)) == HIGH


def test_a_window_diverges_strictly_above_the_threshold_and_only_when_solved() -> None:
    windows = probes(
        positions=(0, 1, 2, 3),
        distances=(0.3, 0.30001, math.nan, 9.0),
        num_student=(4, 4, 4, 4),
        converged_W=np.array([True, True, False, False]),
    )
    assert divergent(windows, 0.3).tolist() == [False, True, False, False]


def test_distances_are_those_of_the_windows_that_the_verdict_judges() -> None:
    """A plan that did not converge has a finite distance, and sets no threshold."""
    windows = probes(
        positions=(0, 1, 2, 3),
        distances=(0.3, 0.5, 9.0, 0.1),
        num_student=(4, 4, 4, 4),
        converged_W=np.array([True, True, False, True]),
        groups_W=np.array([HIGH, HIGH, HIGH, LOW], np.int32),
    )
    found = solved_distances([windows, windows], HIGH)
    assert found == pytest.approx((0.3, 0.5, 0.3, 0.5))
    assert solved_distances([windows], LOW) == pytest.approx((0.1,))


def test_a_control_never_diverges() -> None:
    windows = probes(
        positions=(0, 1, 2),
        distances=(0.9, 0.9, 0.9),
        num_student=(4, 4, 4),
        groups_W=np.array([RANDOM, HIGH, LOW], np.int32),
    )
    assert divergent(windows, 0.3).tolist() == [False, True, False]
