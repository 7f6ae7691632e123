"""A step's windows as the page has them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import topd_ray
from topd_ray.page.arrow import lists, starts
from topd_ray.page.tokens import TokenTexts
from topd_ray.page.windows import (
    CONTROL,
    DIVERGENT,
    FALSE_ALARM,
    UNSOLVED,
    list_columns,
    plan_columns,
    read_windows,
)
from topd_ray.transport import soft_targets

TOKENS = TokenTexts(None)


def test_a_candidate_beyond_the_threshold_without_a_verdict_is_unsolved() -> None:
    table = pa.table(
        {
            "rollout_id": ["a"] * 6,
            "group": ["high", "high", "high", "high", "random", "low"],
            "d_ot": [0.3, 0.1, 0.3, None, 0.3, 0.3],
            "threshold": [0.2] * 6,
            "divergent": [True, False, False, False, False, False],
            "student_ids": [[1]] * 6,
        }
    )
    verdicts = read_windows(table, 1).verdicts_W.tolist()
    expected = [DIVERGENT, FALSE_ALARM, UNSOLVED, UNSOLVED, CONTROL, CONTROL]
    assert verdicts == expected


def test_an_older_file_without_plans_has_a_list_and_no_plans() -> None:
    table = pa.table(
        {
            "rollout_id": ["a"],
            "position": [3],
            "group": ["high"],
            "token_loss": [1.0],
            "d_ot": [0.1],
            "threshold": [0.2],
            "divergent": [False],
            "student_ids": [[5, 6]],
            "teacher_ids": [[5]],
        }
    )
    windows = read_windows(table, 1)
    columns = list_columns(windows, TOKENS)
    assert np.asarray(columns["has_plan"]).tolist() == [0]
    assert plan_columns(windows, TOKENS) is None


def test_mass_and_soft_targets_are_those_of_the_recorded_plan(synthetic: Path) -> None:
    table = topd_ray.open_run(synthetic).read("windows", 1)
    assert table is not None
    columns = plan_columns(read_windows(table, 1), TOKENS)
    assert columns is not None
    whole = {name: np.asarray(column) for name, column in columns.items()}
    first_row = starts(whole["num_rows"])
    first_entry = starts(whole["num_entries"])
    recorded = [row for row in table.to_pylist() if row["plan_rows"]]
    assert len(recorded) == len(whole["num_rows"])
    for place, window in enumerate(recorded):
        num_rows, num_columns = len(window["student_ids"]), len(window["teacher_ids"])
        plan = np.zeros((num_rows, num_columns), np.float32)
        plan[window["plan_rows"], window["plan_columns"]] = window["plan_mass"]
        shown = np.zeros_like(plan)
        for row in range(num_rows):
            r = first_row[place] + row
            entries = slice(first_entry[r], first_entry[r + 1])
            weights = whole["weight"][entries] / 65_535
            shown[row, whole["column"][entries]] = weights
            np.testing.assert_allclose(whole["row_mass"][r], plan[row].sum(), rtol=1e-5)
        trained = soft_targets(torch.from_numpy(plan)[None], torch.tensor([num_rows]))
        # A weight is kept in 65,535ths.
        np.testing.assert_allclose(shown, trained[0].numpy(), atol=0.5 / 65_535 + 1e-7)


def test_lists_that_are_null_have_no_values() -> None:
    table = pa.table({"ids": pa.array([[1, 2], None, [3]], pa.list_(pa.int32()))})
    values, lengths = lists(table, "ids", "uint32")
    assert values.tolist() == [1, 2, 3]
    assert lengths.tolist() == [2, 0, 1]
