"""Every number of a reading against float64 brute force over the whole vocabulary.

Axes: N positions, V vocabulary, D width, M kept ids of the student, K of the teacher.
"""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from topd_ray.teacher.reading import Reading, read_response

N, V, D = 23, 61, 8
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32 logits up to ~50: 50 * 2^-23 = 6e-6


class Case:
    """A random student and teacher: in float64 over all ids, and as messages."""

    def __init__(
        self, *, top: int, seed: int = 0, same: bool = False, scale: float = 1.0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.hidden_ND = (scale * rng.normal(size=(N, D))).astype(np.float32)
        self.head_VD = rng.normal(size=(V, D)).astype(np.float32)
        teacher_NV = self.hidden_ND.astype(np.float64) @ self.head_VD.T.astype(
            np.float64
        )
        student_NV = teacher_NV if same else scale * rng.normal(size=(N, V)) * 3
        self.logq_NV = log_softmax(teacher_NV)
        self.logp_NV = log_softmax(student_NV)
        self.response_N = rng.integers(0, V, size=N).astype(np.int32)
        self.top_ids_NM = np.argsort(-self.logp_NV, axis=1)[:, :top].astype(np.int32)
        self.top_logp_NM = np.take_along_axis(self.logp_NV, self.top_ids_NM, 1).astype(
            np.float32
        )

    def arguments(self) -> dict[str, Any]:
        arrays = [self.response_N, self.hidden_ND, self.top_ids_NM, self.top_logp_NM]
        for array in arrays:
            array.flags.writeable = False  # as it comes out of the object store
        return {
            "hidden_ND": self.hidden_ND,
            "head_RD": torch.from_numpy(self.head_VD),
            "head_is_bfloat16": False,
            "num_ids": V,
            "response_ids_N": self.response_N,
            "top_k": 4,
            "student_top": (self.top_ids_NM, self.top_logp_NM),
            "chunk": 5,
        }

    def read(self, **replaced: Any) -> Reading:
        return read_response(**(self.arguments() | replaced))

    def kl(
        self, logp_NM: NDArray[np.float32] | None = None, **replaced: Any
    ) -> NDArray[np.float32]:
        top = (self.top_ids_NM, self.top_logp_NM if logp_NM is None else logp_NM)
        return self.read(**({"student_top": top} | replaced)).reverse_kl_N

    def brute_force_kl(self) -> NDArray[np.float64]:
        losses = []
        for logp_V, logq_V, top in zip(
            self.logp_NV, self.logq_NV, self.top_ids_NM, strict=True
        ):
            rest = np.setdiff1d(np.arange(V), top)
            loss = float(np.sum(np.exp(logp_V[top]) * (logp_V[top] - logq_V[top])))
            if len(rest):
                tail_p = np.exp(logp_V[rest]).sum()
                tail_q = np.exp(logq_V[rest]).sum()
                loss += tail_p * np.log(tail_p / tail_q)
            losses.append(loss)
        return np.array(losses)


def log_softmax(logits_NV: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted_NV = logits_NV - logits_NV.max(1, keepdims=True)
    return shifted_NV - np.log(np.exp(shifted_NV).sum(1, keepdims=True))


@pytest.mark.parametrize("top_k", [1, 5, V])
def test_the_teachers_ids_are_its_likeliest_under_the_full_softmax(top_k: int) -> None:
    for seed in range(5):
        case = Case(top=3, seed=seed)
        reading = case.read(top_k=top_k)
        best_NV = np.argsort(-case.logq_NV, axis=1)
        np.testing.assert_array_equal(reading.top_ids_NK, best_NV[:, :top_k])
        expected_NK = np.take_along_axis(case.logq_NV, best_NV[:, :top_k], 1)
        np.testing.assert_allclose(reading.top_logq_NK, expected_NK, **TOLERANCE)
        assert (reading.top_ids_NK.dtype, reading.top_logq_NK.dtype) == (
            np.int32,
            np.float32,
        )


def test_more_ids_than_there_are_gives_all_of_them() -> None:
    reading = Case(top=3).read(top_k=V + 9)
    assert reading.top_ids_NK.shape == reading.top_logq_NK.shape == (N, V)
    np.testing.assert_allclose(
        np.exp(reading.top_logq_NK.astype(np.float64)).sum(1), 1, atol=1e-5
    )


def test_without_top_k_and_student_ids_their_fields_are_empty() -> None:
    reading = Case(top=3).read(top_k=0, student_top=None)
    assert reading.top_ids_NK.shape == reading.top_logq_NK.shape == (N, 0)
    assert reading.reverse_kl_N.shape == (0,)


def test_the_response_token_has_its_log_probability() -> None:
    for seed in range(5):
        case = Case(top=3, seed=seed)
        expected_N = case.logq_NV[np.arange(N), case.response_N]
        np.testing.assert_allclose(case.read().logq_N, expected_N, **TOLERANCE)


@pytest.mark.parametrize("top", [1, 7, V - 1, V])
def test_the_kl_is_that_of_brute_force(top: int) -> None:
    for seed in range(5):
        case = Case(top=top, seed=seed)
        loss_N = case.kl()
        assert loss_N.dtype == np.float32
        np.testing.assert_allclose(loss_N, case.brute_force_kl(), **TOLERANCE)


def test_with_every_id_kept_it_is_the_exact_kl() -> None:
    case = Case(top=V)
    exact_N = (np.exp(case.logp_NV) * (case.logp_NV - case.logq_NV)).sum(1)
    np.testing.assert_allclose(case.kl(), exact_N, **TOLERANCE)


def test_the_kl_of_fewer_ids_never_exceeds_the_exact_kl() -> None:
    exact_N = Case(top=V).kl()
    for top in (1, 5, 20):
        bucketed_N = Case(top=top).kl()
        assert (bucketed_N <= exact_N + 1e-5).all()
        assert (bucketed_N >= -1e-5).all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("top", [1, 8, V])
def test_student_equal_to_teacher_reads_zero(top: int, scale: float) -> None:
    # A tail p below 1e-6 is off by p log(1e-6 / p) < 1e-6; float32 logits up to ~150
    # give the rest.
    np.testing.assert_allclose(Case(top=top, same=True, scale=scale).kl(), 0, atol=3e-5)


def test_a_sharp_student_and_teacher_far_apart_stay_finite_and_positive() -> None:
    for top in (1, 8, V):
        loss_N = Case(top=top, scale=30.0).kl()
        assert np.isfinite(loss_N).all()
        assert (loss_N >= -3e-5).all()


def test_padding_contributes_nothing() -> None:
    case = Case(top=7)
    padding = ((0, 0), (0, 4))
    padded = (
        np.pad(case.top_ids_NM, padding, constant_values=-1),
        np.pad(case.top_logp_NM, padding, constant_values=-np.inf),
    )
    np.testing.assert_array_equal(case.kl(student_top=padded), case.kl())


def test_an_id_without_probability_contributes_nothing() -> None:
    case = Case(top=3)
    logp_NM = case.top_logp_NM.copy()
    logp_NM[:, 2] = -np.inf
    assert np.isfinite(case.kl(logp_NM)).all()


def test_probabilities_that_sum_to_more_than_one_leave_no_tail() -> None:
    case = Case(top=20)
    logp_NM = case.top_logp_NM + np.float32(0.1)
    logq_NM = np.take_along_axis(case.logq_NV, case.top_ids_NM, 1)
    top_only_N = (np.exp(logp_NM) * (logp_NM - logq_NM)).sum(1)
    over = np.exp(logp_NM).sum(1) > 1
    assert over.any()
    np.testing.assert_allclose(case.kl(logp_NM)[over], top_only_N[over], **TOLERANCE)


def test_an_imprecise_engine_with_every_id_kept_stays_finite() -> None:
    case = Case(top=V)
    for shift in (-1e-2, 1e-2):  # probabilities that sum to 0.99 or 1.01
        shifted_N = case.kl(case.top_logp_NM + np.float32(shift))
        np.testing.assert_allclose(shifted_N, case.kl(), rtol=0.03, atol=0.02)


def test_the_chunk_changes_nothing() -> None:
    case = Case(top=7)
    whole = case.read(chunk=N)
    for chunk in (1, 4, N + 1):
        reading = case.read(chunk=chunk)
        np.testing.assert_array_equal(reading.top_ids_NK, whole.top_ids_NK)
        for name in ("logq_N", "top_logq_NK", "reverse_kl_N"):
            expected = getattr(whole, name)
            np.testing.assert_allclose(
                getattr(reading, name), expected, rtol=1e-5, atol=1e-5
            )


def test_a_hidden_state_that_is_nan_changes_no_other_position() -> None:
    case = Case(top=7)
    poisoned_ND = case.hidden_ND.copy()
    poisoned_ND[3] = np.nan
    reading = case.read(hidden_ND=poisoned_ND)
    clean = case.read()
    others = np.arange(N) != 3
    for name in ("logq_N", "top_logq_NK", "reverse_kl_N"):
        values = getattr(reading, name)
        assert np.isnan(values[3]).all()
        np.testing.assert_array_equal(values[others], getattr(clean, name)[others])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"response_ids_N": np.zeros(N - 1, np.int32)}, "do not line up"),
        ({"hidden_ND": np.zeros((N + 1, D), np.float32)}, "do not line up"),
        (
            {"hidden_ND": np.zeros((N, D + 1), np.float32)},
            "hidden width 9, head width 8",
        ),
        (
            {"response_ids_N": np.full(N, V, np.int32)},
            "outside the teacher's vocabulary of 61",
        ),
        (
            {"response_ids_N": np.full(N, -1, np.int32)},
            "outside the teacher's vocabulary",
        ),
        (
            {
                "student_top": (
                    np.full((N, 7), V, np.int32),
                    np.zeros((N, 7), np.float32),
                )
            },
            "outside the teacher's vocabulary",
        ),
        (
            {"student_top": (np.zeros((N, 7), np.int32), np.zeros((N, 6), np.float32))},
            "do not line up",
        ),
    ],
)
def test_arrays_that_do_not_line_up_are_refused(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Case(top=7).read(**changed)


def test_no_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="the response is empty"):
        read_response(
            hidden_ND=np.zeros((0, D), np.float32),
            head_RD=torch.zeros(V, D),
            head_is_bfloat16=False,
            num_ids=V,
            response_ids_N=np.zeros(0, np.int32),
            top_k=1,
            student_top=None,
            chunk=5,
        )


def test_the_bits_of_bfloat16_states_are_read_as_the_numbers_they_are() -> None:
    case = Case(top=7)
    rounded_ND = torch.from_numpy(case.hidden_ND.copy()).bfloat16()
    bits = case.read(hidden_ND=rounded_ND.view(torch.uint16).numpy())
    numbers = case.read(hidden_ND=rounded_ND.float().numpy())
    for field in fields(Reading):
        np.testing.assert_array_equal(
            getattr(bits, field.name), getattr(numbers, field.name)
        )


def test_rows_of_padding_are_no_part_of_any_distribution() -> None:
    case = Case(top=7)
    padding = 50 * torch.ones(3, D)
    padded = torch.cat([torch.from_numpy(case.head_VD), padding])
    want, got = case.read(), case.read(head_RD=padded)
    np.testing.assert_array_equal(got.top_ids_NK, want.top_ids_NK)
    for field in ("logq_N", "top_logq_NK", "reverse_kl_N"):
        array = getattr(got, field)
        np.testing.assert_allclose(array, getattr(want, field), rtol=1e-6, atol=1e-6)


def test_inputs_and_the_grad_mode_are_unchanged() -> None:
    case = Case(top=7)
    before = [case.hidden_ND.copy(), case.head_VD.copy(), case.top_logp_NM.copy()]
    case.read()
    after = [case.hidden_ND, case.head_VD, case.top_logp_NM]
    for array_before, array_after in zip(before, after, strict=True):
        np.testing.assert_array_equal(array_after, array_before)
    assert torch.is_grad_enabled()
