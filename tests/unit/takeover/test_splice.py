"""The trained response: the student's tokens, then the teacher's."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import make
from topd_ray.config import ObjectiveConfig
from topd_ray.messages import HiddenSignal, ScoredRollout, Takeover
from topd_ray.takeover import taken_over
from topd_ray.windows import pack
from topd_ray.windows.pack import which_kl

WIDTH = 4


def takeover(position: int, length: int, **fields: object) -> Takeover:
    rng = np.random.default_rng(position * 100 + length)
    values = {
        "rollout_id": "r0",
        "policy_version": 0,
        "position": position,
        "response_ids_L": np.arange(50, 50 + length, dtype=np.int32),
        "finish_reason": "length",
        "signal": HiddenSignal(
            hidden_ND=rng.standard_normal((length, WIDTH), np.float32)
        ),
        "logq_L": -rng.random(length, np.float32),
    }
    return Takeover(**values | fields)


@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))),
    st.integers(1, 9),
)
def test_tokens_before_the_fork_are_the_students_and_the_rest_is_the_teachers(
    shape, length
):
    num_tokens, t = shape
    plain = make.scored(length=num_tokens, width=WIDTH)
    its = takeover(t, length)
    got = taken_over(plain, its)
    before = plain.rollout
    after = got.rollout
    assert after.num_own == t
    assert after.finish_reason == "length"
    assert after.response_ids_N[:t].tobytes() == before.response_ids_N[:t].tobytes()
    np.testing.assert_array_equal(after.response_ids_N[t:], its.response_ids_L)
    np.testing.assert_array_equal(after.logp_O, before.logp_O[:t])
    np.testing.assert_array_equal(after.top_ids_OM, before.top_ids_OM[:t])
    np.testing.assert_array_equal(got.logq_N[t:], its.logq_L)
    np.testing.assert_array_equal(got.token_loss_N[:t], plain.token_loss_N[:t])
    assert isinstance(got.signal, HiddenSignal)
    assert isinstance(plain.signal, HiddenSignal)
    assert isinstance(its.signal, HiddenSignal)
    np.testing.assert_array_equal(
        got.signal.hidden_ND,
        np.concatenate([plain.signal.hidden_ND[:t], its.signal.hidden_ND]),
    )


def test_without_a_fork_nothing_changes():
    plain = make.scored()
    assert taken_over(plain, None) is plain


@pytest.mark.parametrize(
    "fields", [{"rollout_id": "r1"}, {"policy_version": 1}, {"position": 5}]
)
def test_a_takeover_of_another_rollout_is_refused(fields):
    plain = make.scored(length=5, width=WIDTH)
    with pytest.raises(ValueError, match="r0"):
        taken_over(plain, replace(takeover(2, 3), **fields))


R, F, B = (True, False), (False, True), (True, True)


@pytest.mark.parametrize(
    ("num_own", "mix", "kinds"),
    [
        (2, False, [R, R, B, F, F]),
        (5, False, [R] * 5),
        (4, False, [R, R, R, R, B]),
        (0, False, [F] * 5),
        (2, True, [B] * 5),
        (0, True, [B] * 5),
        (5, True, [B] * 5),
    ],
)
def test_which_divergence_counts_where(num_own, mix, kinds):
    rollout = make.rollout(length=5, logp_O=np.full(num_own, -1.0, np.float32))
    objective = ObjectiveConfig(trajectory="takeover", mix=mix)
    reverse_N, forward_N = which_kl(rollout, objective)
    assert list(zip(reverse_N.tolist(), forward_N.tolist(), strict=True)) == kinds


def test_packed_with_its_masks_and_probabilities():
    rows: list[ScoredRollout] = [
        taken_over(make.scored(length=5, width=WIDTH), takeover(2, 4)),
        make.scored("r1", length=3, width=WIDTH),
    ]
    (batch,) = pack(
        rows,
        None,
        threshold=0.0,
        objective=ObjectiveConfig(trajectory="takeover"),
        token_budget=100,
        run_seed=0,
    )
    assert batch.rollout_ids == ("r0", "r1")
    assert batch.logp_T.tolist() == [-1, -1, *[np.inf] * 4, -1, -1, -1]
    assert batch.reverse_T.tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert batch.forward_T.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0]


def test_any_other_trajectory_has_the_objectives_divergence_everywhere():
    (batch,) = pack(
        [make.scored(width=WIDTH)],
        None,
        threshold=0.0,
        objective=ObjectiveConfig(),
        token_budget=100,
        run_seed=0,
    )
    assert batch.reverse_T.shape == batch.forward_T.shape == (0,)
