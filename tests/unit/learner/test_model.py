from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import VOCAB, make_model
from tests.unit.learner.models import gradients, make
from tests.unit.learner.trees import TEACHER_WIDTH, Inputs
from topd_ray.errors import UserError
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.inputs import Signal
from topd_ray.learner.model import DistillationModel, load_student

NONE = torch.zeros(0, dtype=torch.long)


def inputs(rows: list[list[int]], *, signal: Signal = "hidden") -> Inputs:
    """Every position of every row is trained; one window position on each row's first
    token.
    """
    lengths = [len(row) for row in rows]
    teacher_TE = torch.cat(
        [torch.randn(len(row), TEACHER_WIDTH, generator=seeded(row)) for row in rows]
    )
    starts = [sum(lengths[:r]) for r in range(len(rows))]
    return (
        torch.tensor([token for row in rows for token in row]),
        torch.tensor(lengths),
        torch.arange(len(rows)),
        torch.zeros(len(rows)).long(),
        torch.arange(sum(lengths)),
        torch.tensor([(token + 1) % len(VOCAB) for row in rows for token in row]),
        torch.full((sum(lengths),), -1.5),
        torch.tensor([1.0, 0.5] * sum(lengths))[: sum(lengths)],
        torch.zeros(0).bool(),
        torch.zeros(0).bool(),
        torch.tensor(starts),
        torch.tensor([[7, 9]] * len(rows)),
        torch.tensor([[0.25, 0.75]] * len(rows)),
        *signals(teacher_TE)[signal],
    )


def signals(teacher_TE: Tensor) -> dict[Signal, tuple[Tensor, ...]]:
    """Of a teacher whose logits are its hidden state, cut to the vocabulary."""
    logq_TV = teacher_TE[:, : len(VOCAB)].log_softmax(1)
    logq_TM, ids_TM = logq_TV.topk(4, 1)
    return {
        "hidden": (teacher_TE,),
        "topk": (ids_TM, logq_TM),
        "sampled": (logq_TV[:, 0],),
    }


def seeded(row: list[int]) -> torch.Generator:
    return torch.Generator().manual_seed(sum(row))


@pytest.fixture(scope="module")
def untied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untied")
    return make_model(folder, hidden=32, layers=2, seed=4, tied=False)


ROWS = [[10, 11, 12, 13, 14], [20, 21], [30, 31, 32]]


@pytest.mark.parametrize("signal", ["hidden", "topk", "sampled"])
def test_rollouts_beside_each_other_have_the_sums_of_each_alone(student_folder, signal):
    model = make(student_folder, signal=signal)
    together = model(*inputs(ROWS, signal=signal))
    # weights alternate over all tokens, and the first row is of odd length
    apart = [
        model(*inputs(ROWS[:1], signal=signal)),
        model(*inputs(ROWS[1:], signal=signal)),
    ]
    flat = inputs(ROWS[1:], signal=signal)
    apart[1] = model(*flat[:7], 1.5 - flat[7], *flat[8:])
    for index in range(4):
        torch.testing.assert_close(
            together[index], sum(one[index] for one in apart), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("signal", ["hidden", "topk", "sampled"])
def test_the_loss_is_the_token_loss_plus_lambda_l_traj(student_folder, signal):
    loss, token, traj, *_ = make(student_folder, signal=signal)(
        *inputs(ROWS, signal=signal)
    )
    torch.testing.assert_close(loss, token + 0.5 * traj)
    assert token != 0
    assert traj > 0


def test_gradient_checkpointing_changes_no_gradient(student_folder):
    plain = gradients(make(student_folder), *inputs(ROWS))
    saving = gradients(make(student_folder, gradient_checkpointing=True), *inputs(ROWS))
    torch.testing.assert_close(saving, plain)


@pytest.mark.parametrize("tied", [True, False])
def test_without_trained_positions_every_weight_gets_a_zero_gradient(
    student_folder, untied_folder, tied
):
    model = make(student_folder if tied else untied_folder)
    got = gradients(
        model,
        torch.tensor([3]),
        torch.tensor([1]),
        torch.tensor([0]),
        torch.tensor([0]),
        NONE,
        NONE,
        torch.zeros(0),
        torch.zeros(0),
        NONE.bool(),
        NONE.bool(),
        NONE,
        NONE[:, None],
        torch.zeros(0, 1),
        torch.zeros(0, TEACHER_WIDTH),
    )
    assert got.keys() == dict(model.named_parameters()).keys()
    assert not any(gradient.any() for gradient in got.values())


def test_the_teachers_head_is_neither_trained_nor_saved(student_folder):
    model = make(student_folder)
    assert not any("teacher" in name for name in model.state_dict())
    assert not any("teacher" in name for name, _ in model.named_parameters())


def test_heads_of_different_size_are_refused(student_folder):
    model = make(student_folder)
    message = f"the teacher's output head has 5 rows, the tokenizer {len(VOCAB)} ids"
    with pytest.raises(UserError, match=message):
        model.set_teacher_head(torch.zeros(5, 8))


def test_a_student_that_bends_its_logits_is_refused(student_folder):
    student = load_student(
        student_folder, dtype=torch.float32, gradient_checkpointing=False
    )
    student.config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="final_logit_softcapping=30"):
        DistillationModel(
            student,
            num_ids=len(VOCAB),
            signal="topk",
            teacher_head_VE=None,
            token_loss=TokenLoss(),
            lambda_traj=0.3,
        )
