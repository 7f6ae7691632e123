import dataclasses
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.make import probes, scored
from topd_ray.messages import TrainBatch
from topd_ray.windows import pack


def test_a_batch_holds_prompt_and_response_but_for_the_last_token() -> None:
    one = scored(prompt_length=3, length=5)
    ((batch,),) = pack([one], None, threshold=0.0, token_budget=100, num_ranks=1)
    expected = [*one.rollout.prompt_ids_P, *one.rollout.response_ids_N[:-1]]
    assert batch.input_ids_RL.tolist() == [expected]
    assert batch.lengths_R.tolist() == [7]


def test_each_response_token_is_predicted_from_the_token_before_it() -> None:
    short, long = scored("a", prompt_length=2, length=3), scored("b", prompt_length=3, length=6)
    ((batch,),) = pack([short, long], None, threshold=0.0, token_budget=100, num_ranks=1)
    flat = batch.input_ids_RL.reshape(-1)
    assert batch.rollout_ids == ("b", "a")  # longest first
    before = np.concatenate(
        [
            np.concatenate([one.rollout.prompt_ids_P[-1:], one.rollout.response_ids_N[:-1]])
            for one in (long, short)
        ]
    )
    assert flat[batch.position_T].tolist() == before.tolist()
    hidden = np.concatenate([long.teacher_hidden_ND, short.teacher_hidden_ND])
    assert np.array_equal(batch.teacher_hidden_TD, hidden)


def test_only_divergent_windows_become_targets_at_their_own_positions() -> None:
    one, other = scored("a", length=9), scored("b", length=6)
    found = [
        probes("a", positions=(2, 5), distances=(0.9, 0.1), num_student=(4, 4)),
        probes("b", positions=(3,), distances=(0.8,), num_student=(3,)),
    ]
    ((batch,),) = pack([one, other], found, threshold=0.5, token_budget=100, num_ranks=1)
    assert batch.window_Q.tolist() == [2, 3, 4, 5, 9 + 3, 9 + 4, 9 + 5]
    assert batch.target_ids_QK.tolist() == [[30, 31, 32, 33]] * 7
    assert np.allclose(batch.target_weights_QK.sum(-1), 1.0)


def test_overlapping_windows_both_count() -> None:
    found = [probes("a", positions=(1, 2), distances=(0.9, 0.9), num_student=(4, 4))]
    ((batch,),) = pack([scored("a", length=9)], found, threshold=0.5, token_budget=100, num_ranks=1)
    assert Counter(batch.window_Q.tolist()) == {1: 1, 2: 2, 3: 2, 4: 2, 5: 1}


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    budget=st.integers(1, 80),
    ranks=st.integers(1, 4),
)
def test_every_rollout_is_packed_once_and_ranks_meet_equally_often(
    lengths: list[int], budget: int, ranks: int
) -> None:
    rollouts = [scored(f"r{i}", length=length) for i, length in enumerate(lengths)]
    packed = pack(rollouts, None, threshold=0.0, token_budget=budget, num_ranks=ranks)
    batches: list[TrainBatch] = list(chain.from_iterable(packed))
    names = Counter(chain.from_iterable(batch.rollout_ids for batch in batches))
    assert names == {one.rollout.rollout_id: 1 for one in rollouts}
    assert len({len(share) for share in packed}) == 1
    assert sum(len(batch.position_T) for batch in batches) == sum(lengths)
    for batch in batches:
        assert batch.input_ids_RL.size <= budget or len(batch.lengths_R) == 1


def test_a_rank_without_work_gets_an_empty_batch() -> None:
    _, (empty,) = pack([scored()], None, threshold=0.0, token_budget=100, num_ranks=2)
    assert empty.rollout_ids == ()
    assert empty.position_T.size == 0
    assert empty.input_ids_RL.shape == (1, 1)


def test_probes_of_another_rollout_are_refused() -> None:
    with pytest.raises(ValueError, match="only one of them"):
        pack([scored("a")], [probes("b")], threshold=0.0, token_budget=9, num_ranks=1)


def test_probes_of_another_policy_are_refused() -> None:
    stale = dataclasses.replace(probes("a"), policy_version=3)
    with pytest.raises(ValueError, match="policy_version 0, its probes of 3"):
        pack([scored("a")], [stale], threshold=0.0, token_budget=9, num_ranks=1)
