"""A scored rollout's candidates keep what leads back to it."""

import numpy as np
from numpy.typing import NDArray

from topd_ray.candidates import find_candidates
from topd_ray.config import CandidatesConfig
from topd_ray.messages import Rollout, ScoredRollout


def scored(token_loss_N: NDArray[np.float32]) -> ScoredRollout:
    num_tokens = len(token_loss_N)
    for_each = np.zeros(num_tokens, np.float32)
    rollout = Rollout(
        rollout_id="p0/3",
        prompt_id="p0",
        position=5,
        sample_index=3,
        policy_version=17,
        prompt_ids_P=np.array([1, 2], np.int32),
        response_ids_N=np.arange(num_tokens, dtype=np.int32),
        logp_N=for_each,
        top_ids_NM=np.zeros((num_tokens, 1), np.int32),
        top_logp_NM=np.zeros((num_tokens, 1), np.float32),
        finish_reason="length",
    )
    token_loss_N.flags.writeable = False  # as it comes out of the object store
    return ScoredRollout(
        rollout=rollout,
        teacher_hidden_ND=np.zeros((num_tokens, 4), np.float32),
        token_loss_N=token_loss_N,
    )


def test_candidates_are_the_highest_losses_and_carry_their_rollout() -> None:
    one = scored(np.array([0.1, 0.9, 0.3, 0.8, 0.2, 0.7], np.float32))
    config = CandidatesConfig(fraction=0.34, min_per_rollout=1, min_window=2)
    candidates = find_candidates(one, config)
    assert candidates.positions_W.tolist() == [1, 3]
    np.testing.assert_array_equal(candidates.losses_W, np.array([0.9, 0.8], np.float32))
    assert (candidates.rollout_id, candidates.policy_version) == ("p0/3", 17)
    assert candidates.response_ids_N is one.rollout.response_ids_N
    assert candidates.prompt_ids_P is one.rollout.prompt_ids_P
    assert candidates.truncated


def test_each_setting_reaches_the_selector() -> None:
    one = scored(np.arange(10, dtype=np.float32))

    def positions(**values: float) -> list[int]:
        config = CandidatesConfig.model_validate(
            {"fraction": 0.01, "min_per_rollout": 0, "min_window": 1} | values
        )
        return find_candidates(one, config).positions_W.tolist()

    assert positions() == []
    assert positions(fraction=0.2) == [8, 9]
    assert positions(min_per_rollout=1) == [9]
    assert positions(min_per_rollout=1, min_window=8) == [2]


def test_a_rollout_without_an_eligible_position_has_an_empty_set() -> None:
    candidates = find_candidates(scored(np.ones(3, np.float32)), CandidatesConfig())
    assert candidates.positions_W.shape == candidates.losses_W.shape == (0,)
