"""The candidates and controls of a scored rollout."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import make
from topd_ray.candidates import find_candidates
from topd_ray.config import CandidatesConfig
from topd_ray.messages import HIGH, LOW, RANDOM, CandidateSet, ScoredRollout


def scored(losses: Sequence[float], name: str = "p0/3") -> ScoredRollout:
    loss_N = np.array(losses, np.float32)
    loss_N.flags.writeable = False  # as it comes out of the object store
    rollout = make.rollout(
        name,
        length=len(losses),
        policy_version=17,
        teacher_prompt_ids_P=np.array([1, 2], np.int32),
        finish_reason="length",
    )
    plain = make.scored(length=len(losses))
    return replace(plain, rollout=rollout, token_loss_N=loss_N)


def in_group(candidates: CandidateSet, group: int) -> list[int]:
    return candidates.positions_W[candidates.groups_W == group].tolist()


def test_candidates_are_the_highest_losses_and_carry_their_rollout() -> None:
    scored_rollout = scored([0.1, 0.9, 0.3, 0.8, 0.2, 0.7])
    config = CandidatesConfig(fraction=0.34, min_per_rollout=1, min_window=2)
    candidates = find_candidates(scored_rollout, config, run_seed=0)
    assert candidates.positions_W.tolist() == [1, 3]
    np.testing.assert_array_equal(candidates.losses_W, np.array([0.9, 0.8], np.float32))
    assert (candidates.rollout_id, candidates.policy_version) == ("p0/3", 17)
    assert candidates.response_ids_N is scored_rollout.rollout.response_ids_N
    assert candidates.prompt_ids_P is scored_rollout.rollout.prompt_ids_P
    assert (
        candidates.teacher_prompt_ids_P is scored_rollout.rollout.teacher_prompt_ids_P
    )
    assert candidates.groups_W.tolist() == [HIGH, HIGH]
    assert candidates.truncated


def test_each_setting_reaches_the_selector() -> None:
    scored_rollout = scored(range(10))

    def positions(**values: float) -> list[int]:
        config = CandidatesConfig.model_validate(
            {"fraction": 0.01, "min_per_rollout": 0, "min_window": 1} | values
        )
        return find_candidates(scored_rollout, config, run_seed=0).positions_W.tolist()

    assert positions() == []
    assert positions(fraction=0.2) == [8, 9]
    assert positions(min_per_rollout=1) == [9]
    assert positions(min_per_rollout=1, min_window=8) == [2]


def test_a_rollout_without_an_eligible_position_has_an_empty_set() -> None:
    config = CandidatesConfig()
    candidates = find_candidates(
        scored([1, 1, 1]), config, controls=[RANDOM, LOW], run_seed=0
    )
    assert candidates.positions_W.shape == candidates.losses_W.shape == (0,)
    assert candidates.groups_W.shape == (0,)


def test_low_loss_controls_are_the_lowest_losses_with_a_window_left() -> None:
    config = CandidatesConfig(fraction=0.25, min_window=2)
    scored_rollout = scored([0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.6, 0.0])
    candidates = find_candidates(scored_rollout, config, controls=[LOW], run_seed=0)
    assert candidates.positions_W.tolist() == [1, 3, 0, 4]
    assert candidates.groups_W.tolist() == [HIGH, HIGH, LOW, LOW]
    assert (
        candidates.losses_W.tolist()
        == scored_rollout.token_loss_N[[1, 3, 0, 4]].tolist()
    )


@given(
    losses=st.lists(
        st.one_of(st.floats(0, 3, width=32), st.just(float("nan"))), max_size=30
    ),
    fraction=st.sampled_from([0.1, 0.3, 0.6]),
    min_window=st.integers(1, 5),
    controls=st.permutations([RANDOM, LOW]),
)
def test_groups_share_no_position_and_are_of_one_size_while_positions_last(
    losses: list[float], fraction: float, min_window: int, controls: list[int]
) -> None:
    config = CandidatesConfig(fraction=fraction, min_window=min_window)
    candidates = find_candidates(scored(losses), config, controls=controls, run_seed=3)
    eligible = sum(
        not np.isnan(loss) for loss in losses[: max(0, len(losses) - min_window + 1)]
    )
    num_high = len(in_group(candidates, HIGH))
    assert len(set(candidates.positions_W.tolist())) == len(candidates.positions_W)
    first, second = (len(in_group(candidates, group)) for group in controls)
    assert first == min(num_high, eligible - num_high)
    assert second == min(num_high, eligible - num_high - first)
    for group in (HIGH, RANDOM, LOW):
        assert in_group(candidates, group) == sorted(in_group(candidates, group))
    assert not np.isnan(candidates.losses_W).any()
    alone = find_candidates(scored(losses), config, run_seed=3)
    assert in_group(candidates, HIGH) == alone.positions_W.tolist()


def test_random_controls_repeat_with_their_seed_and_differ_between_rollouts() -> None:
    config = CandidatesConfig(fraction=0.1)

    def drawn(name: str, run_seed: int) -> list[int]:
        scored_rollout = scored(range(200), name)
        return in_group(
            find_candidates(
                scored_rollout, config, controls=[RANDOM], run_seed=run_seed
            ),
            RANDOM,
        )

    assert drawn("a", 0) == drawn("a", 0)
    assert len({tuple(drawn(*which)) for which in (("a", 0), ("b", 0), ("a", 1))}) == 3


def test_every_position_that_is_no_candidate_is_drawn_as_a_control_equally_often() -> (
    None
):
    """200 draws of 2 out of 8: a position is drawn 50 times on average, sd 6.1."""
    config = CandidatesConfig(fraction=0.2, min_window=1)
    counts = np.zeros(10, int)
    for seed in range(200):
        scored_rollout = scored([*range(8), 9, 9])
        candidates = find_candidates(
            scored_rollout, config, controls=[RANDOM], run_seed=seed
        )
        counts[in_group(candidates, RANDOM)] += 1
    assert counts[8:].tolist() == [0, 0]
    assert (abs(counts[:8] - 50) < 5 * 6.1).all()


def test_a_group_that_is_no_control_is_refused() -> None:
    with pytest.raises(ValueError, match="controls=0"):
        find_candidates(
            scored(range(20)), CandidatesConfig(), controls=[HIGH], run_seed=0
        )
