"""Windows beside their rollout, against separate forwards of prefix and window."""

import pytest
import torch

from tests.unit.learner.layouts import TREE, make_layout
from tests.unit.learner.models import gradients, make
from tests.unit.learner.trees import Row, Window, in_one_forward, one_by_one
from topd_ray.learner.layout import Layout

LONG = Row(
    [20, 21, 22],
    [30, 31, 32, 33, 34, 35, 36],
    (
        Window(2, [40, 41, 42, 43]),
        Window(2, [44, 45]),  # a sibling: the same prefix
        Window(0, [46, 47, 48]),  # from the prompt alone
        Window(5, [49]),  # one token, which the trunk predicts
        Window(4, [50, 51, 52, 53, 54]),  # longer than what is left of the rollout
    ),
)
SHORT = Row([23, 24], [37, 38, 39], (Window(1, [55, 56]),))
BARE = Row([25], [57, 58, 59, 60])
ROWS = {
    "siblings": [LONG],
    "rows": [SHORT, LONG, BARE],
    "bare": [BARE, Row([26, 27], [61])],
}


@pytest.mark.parametrize("name", ROWS)
def test_windows_beside_a_rollout_have_the_losses_of_separate_forwards(
    student_folder, name
):
    model = make(student_folder)
    together = model(*in_one_forward(ROWS[name]))
    apart = [model(*inputs) for inputs in one_by_one(ROWS[name])]
    for index in range(3):
        want = torch.stack([one[index] for one in apart]).sum()
        torch.testing.assert_close(together[index], want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("saving", [False, True])
def test_windows_beside_a_rollout_have_the_gradient_of_separate_forwards(
    student_folder, name, saving
):
    model = make(student_folder, gradient_checkpointing=saving)
    together = gradients(model, *in_one_forward(ROWS[name]))
    apart = [gradients(model, *inputs) for inputs in one_by_one(ROWS[name])]
    assert together.keys() == dict(model.named_parameters()).keys()
    for name_, gradient in together.items():
        want = torch.stack([one[name_] for one in apart]).sum(0)
        assert gradient.any()
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5)


"""A rollout with two windows, and another with one."""


def picture(layout: Layout, reach: int | None = None) -> list[str]:
    index_L = torch.arange(len(layout.place_L))
    seen_LL = layout.sees(index_L[:, None], index_L, reach)
    return ["".join("1" if seen else "." for seen in row) for row in seen_LL.tolist()]


def test_each_token_sees_its_trunk_up_to_its_branch_and_its_own_segment_so_far() -> (
    None
):
    layout = make_layout(*TREE)
    assert picture(layout) == [
        "1..........",
        "11.........",
        "111........",
        "1111.......",
        "11..1......",
        "11..11.....",
        "1111..1....",
        ".......1...",
        ".......11..",
        ".......1.1.",
        ".......1.11",
    ]
    assert layout.place_L.tolist() == [0, 1, 2, 3, 2, 3, 4, 0, 1, 1, 2]


def test_a_short_reach_counts_places_not_distance_in_the_sequence() -> None:
    assert picture(make_layout(*TREE), 2) == [
        "1..........",
        "11.........",
        ".11........",
        "..11.......",
        ".1..1......",
        "....11.....",
        "...1..1....",
        ".......1...",
        ".......11..",
        ".......1.1.",
        ".........11",
    ]


def test_windows_of_one_trunk_run_together_up_to_a_size() -> None:
    layout = make_layout(
        (90, 0, 0), (50, 0, 20), (50, 0, 80), (50, 0, 10), (9, 4, 0), (5, 4, 3)
    )
    assert [(run.own.start, run.own.stop) for run in layout.runs] == [
        (0, 90),
        (90, 190),
        (190, 240),
        (240, 249),
        (249, 254),
    ]
    before = [run.before for run in layout.runs]
    assert before == [None, slice(0, 80), slice(0, 10), None, slice(240, 243)]
