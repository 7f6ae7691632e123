"""The fork of a rollout: hand-computed cases of every verdict."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import make
from topd_ray.config import CandidatesConfig, TakeoverConfig
from topd_ray.messages import HIGH, CandidateSet, PartialRollout, ScoredRollout
from topd_ray.takeover import fork_ahead, fork_candidates, fork_of

LOGQ = np.log(np.array([0.9, 0.01, 0.5, 0.001, 0.01, 0.9, 0.9, 0.01], np.float32))
"""The student's tokens 1, 3, 4 and 7 are unlikely."""
ENTROPY = np.array([0.1, 2.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], np.float32)
"""At token 1 the teacher is not sure."""


D_OT = TakeoverConfig(verdict="d_ot")


def scored() -> ScoredRollout:
    return replace(make.scored(length=8), logq_N=LOGQ, entropy_N=ENTROPY)


def found(**fields: object) -> CandidateSet:
    return fork_candidates(
        scored(), TakeoverConfig(**fields), CandidatesConfig(min_window=2)
    )


@pytest.mark.parametrize(
    ("fields", "positions"),
    [
        ({}, [3]),
        ({"max_teacher_entropy": 3.0}, [1]),
        ({"max_teacher_prob": 0.005}, [3]),
        ({"max_teacher_prob": 0.0005}, []),
        ({"verdict": "d_ot"}, [1, 3, 4]),
        ({"verdict": "d_ot", "candidates": 2}, [1, 3]),
        ({"verdict": "both"}, [3, 4]),
        ({"verdict": "surprise"}, [0, 1, 2, 3, 4, 5, 6]),
        ({"verdict": "never"}, []),
        ({"verdict": "always"}, [0]),
    ],
)
def test_the_earliest_positions_are_found(fields, positions):
    assert found(**fields).positions_W.tolist() == positions


def test_a_fork_needs_tokens_behind_it():
    close = fork_candidates(scored(), TakeoverConfig(), CandidatesConfig(min_window=6))
    assert close.positions_W.tolist() == []


def test_candidates_carry_what_a_probe_needs():
    candidates = found(verdict="d_ot")
    rollout = scored().rollout
    assert candidates.rollout_id == rollout.rollout_id
    assert candidates.groups_W.tolist() == [HIGH] * 3
    np.testing.assert_array_equal(candidates.response_ids_N, rollout.response_ids_N)
    np.testing.assert_array_equal(
        candidates.losses_W, scored().token_loss_N[candidates.positions_W]
    )


@pytest.mark.parametrize(
    ("distances", "fork"),
    [((0.2, 0.6, 0.9), 3), ((0.7, 0.6, 0.9), 1), ((0.2, 0.5, 0.4), None)],
)
def test_with_probes_the_fork_is_the_first_real_divergence(distances, fork):
    candidates = found(verdict="d_ot")
    probes = make.probes(
        positions=(1, 3, 4), distances=distances, num_student=(3, 3, 3)
    )
    assert fork_of(candidates, probes, D_OT, 0.5) == fork


def test_an_unfinished_plan_is_no_fork():
    candidates = found(verdict="d_ot")
    probes = make.probes(
        positions=(1, 3, 4),
        distances=(0.9, 0.9, 0.9),
        num_student=(3, 3, 3),
        converged_W=np.array([False, True, True]),
    )
    assert fork_of(candidates, probes, D_OT, 0.5) == 3


def test_without_probes_the_first_candidate_is_the_fork():
    assert fork_of(found(), None, TakeoverConfig(), 0.0) == 3
    never = TakeoverConfig(verdict="never")
    assert fork_of(found(verdict="never"), None, never, 0.0) is None


@pytest.mark.parametrize(
    ("threshold", "fork"), [(2.0, 1), (4.0, 3), (6.0, 3), (7, None)]
)
def test_a_surprise_is_what_the_teacher_did_not_expect(threshold, fork):
    """Token 1 has a loss of 4.6 where 2 are expected, token 3 of 6.9 where 0.1 are."""
    config = TakeoverConfig(verdict="surprise")
    candidates = found(verdict="surprise")
    np.testing.assert_allclose(candidates.losses_W, (-LOGQ - ENTROPY)[:7])
    assert fork_of(candidates, None, config, threshold) == fork


def partial(num_tokens: int) -> PartialRollout:
    rollout = scored().rollout
    return PartialRollout(
        rollout_id=rollout.rollout_id,
        policy_version=rollout.policy_version,
        prompt_ids_P=rollout.prompt_ids_P,
        teacher_prompt_ids_P=rollout.teacher_prompt_ids_P,
        response_ids_N=rollout.response_ids_N[:num_tokens],
    )


@given(
    logq=st.lists(st.sampled_from([-0.1, -3.9, -5.0]), min_size=1, max_size=30),
    sure=st.lists(st.booleans(), min_size=30, max_size=30),
    min_window=st.integers(1, 10),
    verdict=st.sampled_from(["confident", "surprise"]),
)
def test_the_fork_that_is_found_ahead_is_that_of_the_whole_rollout(
    logq: list[float], sure: list[bool], min_window: int, verdict: str
) -> None:
    logq_N = np.array(logq, np.float32)
    entropy_N = np.where(sure[: len(logq)], 0.1, 2.0).astype(np.float32)
    whole = replace(make.scored(length=len(logq)), logq_N=logq_N, entropy_N=entropy_N)
    config = TakeoverConfig(verdict=verdict)
    candidates = fork_candidates(whole, config, CandidatesConfig(min_window=min_window))
    fork = fork_of(candidates, None, config, threshold=3.0)
    expected = [] if fork is None else [fork]
    ahead = []
    for n in range(1, len(logq) + 1):
        beginning = replace(partial(1), response_ids_N=whole.rollout.response_ids_N[:n])
        found_ahead = fork_ahead(
            beginning, logq_N[:n], entropy_N[:n], config, 3.0, min_window=min_window
        )
        if found_ahead is not None:
            ahead.append(found_ahead.positions_W.tolist())
            assert found_ahead.cut
            assert len(found_ahead.response_ids_N) == found_ahead.positions_W[0] + 1
    # Once it is found it stays, and it is found before the last token at the latest.
    assert all(positions == expected for positions in ahead)
    assert bool(ahead) == bool(expected)


def test_a_rollout_that_was_cut_has_its_fork_at_its_last_token() -> None:
    whole = scored()
    cut = replace(
        whole,
        rollout=replace(whole.rollout, finish_reason="cut"),
        logq_N=LOGQ[:4],
        entropy_N=ENTROPY[:4],
        token_loss_N=whole.token_loss_N[:4],
    )
    for verdict, positions in (("confident", [3]), ("surprise", [0, 1, 2, 3])):
        config = TakeoverConfig(verdict=verdict)
        found_W = fork_candidates(cut, config, CandidatesConfig(min_window=8))
        assert found_W.positions_W.tolist() == positions
        assert fork_of(found_W, None, config, threshold=1e9) == 3
    assert found_W.cut
