"""Windows beside their rollout, against separate forwards of prefix and window."""

import pytest
import torch
from transformers import MistralConfig, Qwen3Config

from tests.unit.learner.test_model import gradients, make
from tests.unit.learner.trees import Row, Window, in_one_forward, one_by_one
from topd_ray.errors import UserError
from topd_ray.learner.tree import check_full_attention, tree_mask

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
ROWS = {"siblings": [LONG], "rows": [SHORT, LONG, BARE], "bare": [BARE, Row([26, 27], [61])]}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("pad", [0, 4])
def test_windows_beside_a_rollout_have_the_losses_of_separate_forwards(student_folder, name, pad):
    model = make(student_folder)
    together = model(*in_one_forward(ROWS[name], pad=pad))
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
    together = gradients(model, *in_one_forward(ROWS[name], pad=3))
    apart = [gradients(model, *inputs) for inputs in one_by_one(ROWS[name])]
    assert together.keys() == dict(model.named_parameters()).keys()
    for name_, gradient in together.items():
        want = torch.stack([one[name_] for one in apart]).sum(0)
        assert gradient.any()
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5)


def test_a_row_without_windows_is_the_same_with_and_without_a_tree(student_folder):
    model = make(student_folder)
    inputs = in_one_forward([BARE, Row([26, 27], [61])])
    plain = (*inputs[:2], None, None, None, *inputs[5:])
    for got, want in zip(model(*inputs), model(*plain), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_each_token_sees_its_trunk_up_to_its_branch_its_own_window_and_itself():
    segment_RL = torch.tensor([[0, 0, 0, 0, 1, 1, 2, -1], [0, 0, 1, 1, 1, -1, -1, -1]])
    branch_RL = torch.tensor([[1, 2, 3, 4, 2, 2, 4, 0], [1, 2, 0, 0, 0, 0, 0, 0]])
    seen = [
        ["1.......", "11......", "111.....", "1111....", "11..1...", "11..11..", "1111..1."],
        ["1.......", "11......", "..1.....", "..11....", "..111..."],
    ]
    got_RLL = tree_mask(segment_RL, branch_RL)[:, 0]
    for row, lines in enumerate(seen):
        for query, line in enumerate(lines):
            assert got_RLL[row, query].tolist() == [mark == "1" for mark in line]
        padding = got_RLL[row, len(lines) :]
        assert torch.equal(padding, torch.eye(8, dtype=torch.bool)[len(lines) :])


def test_a_student_with_sliding_windows_is_refused_by_name(student_folder):
    model = make(student_folder)
    model.student.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match=r"type qwen3.*layer_types=sliding_attention.*=rollout"):
        model(*in_one_forward([SHORT]))
    with pytest.raises(UserError, match=r"type mistral.*sliding_window=4096"):
        check_full_attention(MistralConfig())
    check_full_attention(MistralConfig(sliding_window=None))
    check_full_attention(Qwen3Config())
