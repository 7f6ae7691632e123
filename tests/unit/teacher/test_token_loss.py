"""Every token loss against float64 brute force over the whole vocabulary.

Axes: N positions, V vocabulary, D width, M kept ids.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from topd_ray.teacher.token_loss import token_loss

N, V, D = 23, 61, 8
KINDS = ("reverse_kl", "log_ratio", "teacher_nll")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32 logits up to ~50: 50 * 2^-23 = 6e-6


class Case:
    """A random student and teacher, whole in float64 and as the arrays of the messages."""

    def __init__(self, *, top: int, seed: int = 0, same: bool = False, scale: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.hidden_ND = (scale * rng.normal(size=(N, D))).astype(np.float32)
        self.head_VD = rng.normal(size=(V, D)).astype(np.float32)
        teacher_NV = self.hidden_ND.astype(np.float64) @ self.head_VD.T.astype(np.float64)
        student_NV = teacher_NV if same else scale * rng.normal(size=(N, V)) * 3
        self.logq_NV, self.logp_NV = log_softmax(teacher_NV), log_softmax(student_NV)
        self.response_N = rng.integers(0, V, size=N).astype(np.int32)
        self.top_ids_NM = np.argsort(-self.logp_NV, axis=1)[:, :top].astype(np.int32)
        self.top_logp_NM = np.take_along_axis(self.logp_NV, self.top_ids_NM, 1).astype(np.float32)

    def arguments(self) -> dict[str, Any]:
        arrays = {
            "logp_N": self.logp_NV[np.arange(N), self.response_N].astype(np.float32),
            "response_ids_N": self.response_N,
            "top_ids_NM": self.top_ids_NM,
            "top_logp_NM": self.top_logp_NM,
            "teacher_hidden_ND": self.hidden_ND,
        }
        for array in arrays.values():
            array.flags.writeable = False  # as it comes out of the object store
        return {**arrays, "teacher_head_VD": torch.from_numpy(self.head_VD), "chunk": 5}

    def loss(self, kind: str, **replaced: Any) -> NDArray[np.float32]:
        return token_loss(kind, **(self.arguments() | replaced))  # type: ignore[arg-type]

    def brute_force(self, kind: str) -> NDArray[np.float64]:
        at = (np.arange(N), self.response_N)
        if kind == "log_ratio":
            return self.logp_NV[at] - self.logq_NV[at]
        if kind == "teacher_nll":
            return -self.logq_NV[at]
        losses = []
        for logp_V, logq_V, top_ids in zip(
            self.logp_NV, self.logq_NV, self.top_ids_NM, strict=True
        ):
            top = top_ids[top_ids >= 0]
            rest = np.setdiff1d(np.arange(V), top)
            loss = float(np.sum(np.exp(logp_V[top]) * (logp_V[top] - logq_V[top])))
            if len(rest):
                tail_p, tail_q = np.exp(logp_V[rest]).sum(), np.exp(logq_V[rest]).sum()
                loss += tail_p * np.log(tail_p / tail_q)
            losses.append(loss)
        return np.array(losses)


def log_softmax(logits_NV: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted_NV = logits_NV - logits_NV.max(1, keepdims=True)
    return shifted_NV - np.log(np.exp(shifted_NV).sum(1, keepdims=True))


@pytest.mark.parametrize("top", [1, 7, V - 1, V])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_brute_forces(kind: str, top: int) -> None:
    for seed in range(5):
        case = Case(top=top, seed=seed)
        loss_N = case.loss(kind)
        assert loss_N.dtype == np.float32
        np.testing.assert_allclose(loss_N, case.brute_force(kind), **TOLERANCE)


def test_with_every_id_kept_it_is_the_exact_kl() -> None:
    case = Case(top=V)
    exact_N = (np.exp(case.logp_NV) * (case.logp_NV - case.logq_NV)).sum(1)
    np.testing.assert_allclose(case.loss("reverse_kl"), exact_N, **TOLERANCE)


def test_a_coarser_bucket_never_exceeds_the_exact_kl() -> None:
    exact_N = Case(top=V).loss("reverse_kl")
    for top in (1, 5, 20):
        bucketed_N = Case(top=top).loss("reverse_kl")
        assert (bucketed_N <= exact_N + 1e-5).all()
        assert (bucketed_N >= -1e-5).all()
        exact_N = exact_N.clip(min=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("top", [1, 8, V])
def test_student_equal_to_teacher_reads_zero(top: int, scale: float) -> None:
    # A tail p below 1e-6 is off by p log(1e-6 / p) < 1e-6; float32 logits up to ~150 give the rest.
    case = Case(top=top, same=True, scale=scale)
    np.testing.assert_allclose(case.loss("reverse_kl"), 0, atol=3e-5)
    np.testing.assert_allclose(case.loss("log_ratio"), 0, atol=2e-5 * scale)


def test_a_sharp_student_and_teacher_far_apart_stay_finite_and_positive() -> None:
    for top in (1, 8, V):
        loss_N = Case(top=top, scale=30.0).loss("reverse_kl")
        assert np.isfinite(loss_N).all()
        assert (loss_N >= -3e-5).all()


def test_padding_contributes_nothing() -> None:
    case = Case(top=7)
    padding = ((0, 0), (0, 4))
    padded_N = case.loss(
        "reverse_kl",
        top_ids_NM=np.pad(case.top_ids_NM, padding, constant_values=-1),
        top_logp_NM=np.pad(case.top_logp_NM, padding, constant_values=-np.inf),
    )
    np.testing.assert_array_equal(padded_N, case.loss("reverse_kl"))


def test_an_id_without_probability_contributes_nothing() -> None:
    case = Case(top=3)
    logp_NM = case.top_logp_NM.copy()
    logp_NM[:, 2] = -np.inf
    assert np.isfinite(case.loss("reverse_kl", top_logp_NM=logp_NM)).all()


def test_probabilities_that_sum_to_more_than_one_leave_no_tail() -> None:
    case = Case(top=20)
    logp_NM = case.top_logp_NM + np.float32(0.1)
    logq_NM = np.take_along_axis(case.logq_NV, case.top_ids_NM, 1)
    top_only_N = (np.exp(logp_NM) * (logp_NM - logq_NM)).sum(1)
    over = np.exp(logp_NM).sum(1) > 1
    assert over.any()
    loss_N = case.loss("reverse_kl", top_logp_NM=logp_NM)
    np.testing.assert_allclose(loss_N[over], top_only_N[over], **TOLERANCE)


def test_an_imprecise_engine_with_every_id_kept_stays_finite() -> None:
    case = Case(top=V)
    for shift in (-1e-2, 1e-2):  # probabilities that sum to 0.99 or 1.01
        shifted_N = case.loss("reverse_kl", top_logp_NM=case.top_logp_NM + np.float32(shift))
        np.testing.assert_allclose(shifted_N, case.loss("reverse_kl"), rtol=0.03, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_chunk_changes_nothing(kind: str) -> None:
    case = Case(top=7)
    whole_N = case.loss(kind, chunk=N)
    for chunk in (1, 4, N + 1):
        np.testing.assert_allclose(case.loss(kind, chunk=chunk), whole_N, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_bfloat16_read_like_the_rounded_floats(kind: str) -> None:
    case = Case(top=7)
    rounded = torch.from_numpy(case.hidden_ND.copy()).bfloat16()
    from_bits_N = case.loss(kind, teacher_hidden_ND=rounded.view(torch.uint16).numpy())
    from_floats_N = case.loss(kind, teacher_hidden_ND=rounded.float().numpy())
    np.testing.assert_array_equal(from_bits_N, from_floats_N)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bfloat16_head_agrees_to_its_precision(kind: str) -> None:
    case = Case(top=7)
    head_VD = torch.from_numpy(case.head_VD).bfloat16()
    loss_N = case.loss(kind, teacher_head_VD=head_VD)
    # Logits up to ~12 in bfloat16, 2^-8 relative, entering once in logq and once in its logsumexp.
    np.testing.assert_allclose(loss_N, case.brute_force(kind), atol=0.2)


def test_a_hidden_state_that_is_nan_harms_no_other_position() -> None:
    case = Case(top=7)
    poisoned_ND = case.hidden_ND.copy()
    poisoned_ND[3] = np.nan
    loss_N = case.loss("reverse_kl", teacher_hidden_ND=poisoned_ND)
    assert np.flatnonzero(np.isnan(loss_N)).tolist() == [3]
    others = np.arange(N) != 3
    np.testing.assert_array_equal(loss_N[others], case.loss("reverse_kl")[others])


def test_no_positions_give_no_losses() -> None:
    empty = {k: v[:0] for k, v in Case(top=7).arguments().items() if k.endswith(("_N", "NM", "ND"))}
    for kind in KINDS:
        assert Case(top=7).loss(kind, **empty).shape == (0,)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("response_ids_N", np.zeros(N - 1, np.int32), "do not line up"),
        ("top_logp_NM", np.zeros((N, 6), np.float32), "do not line up"),
        ("teacher_hidden_ND", np.zeros((N + 1, D), np.float32), "do not line up"),
        ("teacher_hidden_ND", np.zeros((N, D + 1), np.float32), "hidden width 9, head width 8"),
        ("response_ids_N", np.full(N, V, np.int32), "outside the teacher's vocabulary of 61"),
        ("response_ids_N", np.full(N, -1, np.int32), "outside the teacher's vocabulary"),
        ("top_ids_NM", np.full((N, 7), V, np.int32), "outside the teacher's vocabulary"),
    ],
)
def test_arrays_that_do_not_line_up_are_refused(name: str, array: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case(top=7).loss("reverse_kl", **{name: array})


def test_inputs_are_left_alone_and_so_is_the_grad_mode() -> None:
    case = Case(top=7)
    arguments = case.arguments()
    before = {name: np.array(value) for name, value in arguments.items()}
    token_loss("reverse_kl", **arguments)
    for name, value in arguments.items():
        np.testing.assert_array_equal(np.array(value), before[name])
    assert torch.is_grad_enabled()
