"""Axes as in cases.py."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.learner.cases import (
    BEHIND,
    TRAINED,
    Case,
    D,
    E,
    M,
    V,
    compositions,
    make_case,
)
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.fused import Tiles, distillation_losses, tiles
from topd_ray.learner.loss import Positions, Recipe
from topd_ray.learner.teacher import SampledTeacher, TopkTeacher, WholeTeacher

NO_TEACHER = {
    "hidden": WholeTeacher(hidden_TE=torch.zeros(0, E), head_VE=torch.zeros(V, E)),
    "topk": TopkTeacher(ids_TM=torch.zeros(0, M).long(), logq_TM=torch.zeros(0, M)),
    "sampled": SampledTeacher(logq_T=torch.zeros(0)),
}
cuts = st.builds(Tiles, chunk=st.integers(1, 10), block=st.integers(1, 10))


def assert_close(got: list[Tensor], want: list[Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("signal", "token_loss"), compositions())
@settings(deadline=None, max_examples=15)
@given(cut=cuts, lambda_traj=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 99))
def test_losses_and_gradients_are_autograds_however_the_positions_are_cut(
    signal, token_loss, cut, lambda_traj, seed
):
    case = make_case(
        signal=signal, token_loss=token_loss, lambda_traj=lambda_traj, seed=seed
    )
    total, token, traj, _, *gradients = case.outcome(cut)
    assert_close([total, token, traj, *gradients], case.want())


@pytest.mark.parametrize("signal", ["hidden", "topk"])
def test_the_gradient_is_that_of_finite_differences(signal):
    case = make_case(signal=signal, token_loss=TokenLoss(kd_ratio=0.5))

    def total(hidden_TUD: Tensor, head_VD: Tensor) -> Tensor:
        moved = replace(case, hidden_TUD=hidden_TUD, head_VD=head_VD)
        return 0.7 * moved.losses(Tiles(chunk=4, block=3)).total

    inputs = [t.clone().requires_grad_() for t in (case.hidden_TUD, case.head_VD)]
    assert torch.autograd.gradcheck(total, inputs, eps=1e-6, atol=1e-7)


def test_only_what_needs_a_gradient_gets_one():
    case = make_case()
    *_, want_hidden, want_head = case.outcome()
    for field, want in (("hidden_TUD", want_hidden), ("head_VD", want_head)):
        leaf = getattr(case, field).clone().requires_grad_()
        losses = replace(case, **{field: leaf}).losses()
        assert not any(one.requires_grad for one in losses[1:])
        losses.total.backward()
        torch.testing.assert_close(leaf.grad, want)
    assert not case.losses().total.requires_grad


def test_where_gradients_are_off_none_is_computed(monkeypatch):
    case = make_case(token_loss=TokenLoss(kd_ratio=0.5))
    head_VD = case.head_VD.clone().requires_grad_()
    want = case.losses()
    monkeypatch.setattr(Tensor, "index_put_", None)  # what only a slope takes
    with torch.no_grad():
        got = replace(case, head_VD=head_VD).losses()
    assert_close(list(got), list(want))
    assert not got.total.requires_grad


@pytest.mark.parametrize("signal", ["hidden", "topk", "sampled"])
def test_the_teacher_gets_no_gradient(signal):
    case = make_case(signal=signal)
    teacher = case.positions.teacher
    learning = {
        field.name: getattr(teacher, field.name).clone().requires_grad_()
        for field in fields(teacher)
        if getattr(teacher, field.name).is_floating_point()
    }
    head_VD = case.head_VD.clone().requires_grad_()
    moved = replace(case, head_VD=head_VD).with_positions(
        teacher=replace(teacher, **learning)
    )
    moved.losses().total.backward()
    assert head_VD.grad is not None
    assert all(leaf.grad is None for leaf in learning.values())


@pytest.mark.parametrize("signal", ["hidden", "topk", "sampled"])
@pytest.mark.parametrize(("ours", "theirs"), [(5, 0), (0, 5), (5, 9)])
def test_rows_of_padding_change_nothing_and_get_no_gradient(signal, ours, theirs):
    case = make_case(signal=signal, token_loss=TokenLoss(kd_ratio=0.7))
    teacher = case.positions.teacher
    padded = replace(case, head_VD=with_padding(case.head_VD, ours))
    if signal == "hidden":
        longer = replace(teacher, head_VE=with_padding(teacher.head_VE, theirs))
        padded = padded.with_positions(teacher=longer)
    *got, head_RD = padded.outcome(Tiles(3, 2))
    *want, head_VD = case.outcome(Tiles(3, 2))
    assert_close([*got, head_RD[: len(head_VD)]], [*want, head_VD])
    assert not head_RD[len(head_VD) :].any()


def with_padding(head_VD: Tensor, num_rows: int) -> Tensor:
    """Rows whose logits are the largest, so that any use of them shows."""
    return torch.cat([head_VD, 50 * torch.ones_like(head_VD[:num_rows])])


@pytest.mark.parametrize("signal", ["hidden", "topk", "sampled"])
def test_losses_of_micro_batches_add_up_to_those_of_one_batch(signal):
    case = make_case(signal=signal, token_loss=TokenLoss(kd_ratio=0.7))
    two = [part(case, slice(0, 2), slice(6, 6)), part(case, slice(2, 6), slice(6, 9))]
    added = [a + b for a, b in zip(*(one.losses()[:4] for one in two), strict=True)]
    assert_close(added, list(case.losses()[:4]))


def part(case: Case, trained: slice, behind: slice) -> Case:
    """A micro-batch of these positions and their windows alone."""
    here = case.positions
    kept = [*range(trained.start, trained.stop), *range(behind.start, behind.stop)]
    inside_Q = torch.tensor([position in kept for position in here.window_Q.tolist()])
    own = {
        field.name: getattr(here.teacher, field.name)[
            slice(None) if field.name == "head_VE" else trained
        ]
        for field in fields(here.teacher)
    }
    positions = Positions(
        teacher=type(here.teacher)(**own),
        response_ids_T=here.response_ids_T[trained],
        sampled_logp_T=here.sampled_logp_T[trained],
        weight_T=here.weight_T[trained],
        reverse_T=here.reverse_T[trained],
        forward_T=here.forward_T[trained],
        window_Q=torch.tensor(
            [kept.index(q) for q in here.window_Q[inside_Q].tolist()]
        ).long(),
        target_ids_QK=here.target_ids_QK[inside_Q],
        target_weights_QK=here.target_weights_QK[inside_Q],
    )
    return replace(case, hidden_TUD=case.hidden_TUD[kept], positions=positions)


@pytest.mark.parametrize("signal", NO_TEACHER)
def test_without_positions_the_losses_are_zero_and_so_is_the_gradient_of_the_head(
    signal,
):
    hidden_TUD = torch.zeros(0, D, requires_grad=True)
    head_VD = torch.ones(V, D, requires_grad=True)
    positions = Positions(
        teacher=NO_TEACHER[signal],
        response_ids_T=torch.zeros(0).long(),
        sampled_logp_T=torch.zeros(0),
        weight_T=torch.zeros(0),
        reverse_T=torch.zeros(0, dtype=torch.bool),
        forward_T=torch.zeros(0, dtype=torch.bool),
        window_Q=torch.zeros(0).long(),
        target_ids_QK=torch.zeros(0, 1).long(),
        target_weights_QK=torch.zeros(0, 1),
    )
    recipe = Recipe(token_loss=TokenLoss(kd_ratio=0.5), lambda_traj=0.3)
    losses = distillation_losses(hidden_TUD, head_VD, positions, recipe, Tiles(3, 2), V)
    losses.total.backward()
    assert [one.item() for one in losses] == [0.0] * 6 + [-1.0, 0.0]
    assert hidden_TUD.grad is not None
    assert head_VD.grad is not None
    assert not head_VD.grad.any()


def random_case(dtype: torch.dtype, *, same: bool = False) -> Case:
    """50 positions without windows; the teacher is the student where they are the
    `same`.
    """
    rng = torch.Generator().manual_seed(3)
    hidden_TD, teacher_TD = torch.randn(2, 50, 16, generator=rng).to(dtype)
    head_VD, teacher_VD = torch.randn(2, 300, 16, generator=rng).to(dtype)
    teacher = (
        WholeTeacher(hidden_TE=hidden_TD, head_VE=head_VD)
        if same
        else WholeTeacher(hidden_TE=teacher_TD, head_VE=teacher_VD)
    )
    positions = Positions(
        teacher=teacher,
        response_ids_T=torch.zeros(50).long(),
        sampled_logp_T=torch.full((50,), torch.inf),
        weight_T=torch.ones(50),
        reverse_T=torch.zeros(0, dtype=torch.bool),
        forward_T=torch.zeros(0, dtype=torch.bool),
        window_Q=torch.zeros(0).long(),
        target_ids_QK=torch.zeros(0, 1).long(),
        target_weights_QK=torch.zeros(0, 1),
    )
    return Case(
        hidden_TD,
        head_VD,
        positions,
        Recipe(token_loss=TokenLoss(), lambda_traj=0.3),
        num_ids=len(head_VD),
    )


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_a_student_equal_to_its_teacher_has_no_token_loss_even_in_float32(divergence):
    case = random_case(torch.float32, same=True)
    recipe = replace(case.recipe, token_loss=TokenLoss(divergence=divergence))
    losses = replace(case, recipe=recipe).losses(Tiles(20, 7))
    assert abs(losses.token.item()) / 50 < 1e-5


def test_in_bfloat16_many_chunks_add_up_the_heads_gradient_in_float32():
    """One rounding to bfloat16 (2 ** -9) a product and one of the sum, not one an
    addition.
    """
    case = random_case(torch.bfloat16)
    assert case.head_VD.dtype == torch.bfloat16
    *_, one_by_one_TD, one_by_one_VD = case.outcome(Tiles(chunk=1, block=1))
    *_, want_TD, want_VD = (x.float() for x in case.want())
    assert one_by_one_VD.dtype == torch.bfloat16
    for got, want in ((one_by_one_TD, want_TD), (one_by_one_VD, want_VD)):
        assert (got.float() - want).norm() < 2**-7 * want.norm()


@pytest.mark.parametrize("num_ids", [64, 151_936, 10**9])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_block_is_never_more_than_a_chunk_nor_less_than_a_position(num_ids, device):
    cut = tiles(num_ids, torch.device(device))
    assert 1 <= cut.block <= cut.chunk
    assert cut.chunk == 1 or cut.chunk * num_ids * 4 <= 2**30


def test_the_case_has_windows_on_and_behind_the_trained_positions():
    window_Q = make_case().positions.window_Q
    assert (window_Q < TRAINED).any()
    assert ((window_Q >= TRAINED) & (window_Q < TRAINED + BEHIND)).any()
