"""The worst token of a micro-batch is found in its rollout again."""

import numpy as np

from topd_ray.learner.gaps import token_gap
from topd_ray.messages import SampledSignal, TokenGap, TrainBatch


def test_a_position_leads_to_rollout_and_place_also_behind_windows() -> None:
    """Rollout a: prompt of 2, response of 3, a window of 2; rollout b: 1 and 2."""
    batch = TrainBatch(
        rollout_ids=("a", "b"),
        policy_version=0,
        input_ids_L=np.array([20, 21, 6, 7, 9, 9, 30, 8], np.int32),
        length_S=np.array([4, 2, 2], np.int32),
        trunk_S=np.array([0, 0, 2], np.int32),
        branch_S=np.array([0, 3, 0], np.int32),
        position_TU=np.array([1, 2, 3, 6, 7, 4, 5], np.int32),
        response_ids_T=np.array([6, 7, 2, 8, 2], np.int32),
        logp_T=np.array([-1, -2, -3, -4, -5], np.float32),
        weight_T=np.ones(5, np.float32),
        reverse_T=np.zeros(0, np.bool_),
        forward_T=np.zeros(0, np.bool_),
        signal=SampledSignal(logq_N=np.zeros(5, np.float32)),
        window_Q=np.zeros(0, np.int32),
        target_ids_QK=np.zeros((0, 1), np.int32),
        target_weights_QK=np.zeros((0, 1), np.float32),
    )
    found = [token_gap(batch, at, -9.0) for at in range(5)]
    assert found == [
        TokenGap(
            rollout_id=name,
            index=index,
            token_id=token_id,
            engine_logp=logp,
            learner_logp=-9.0,
        )
        for name, index, token_id, logp in (
            ("a", 2, 6, -1.0),
            ("a", 3, 7, -2.0),
            ("a", 4, 2, -3.0),
            ("b", 1, 8, -4.0),
            ("b", 2, 2, -5.0),
        )
    ]
    assert token_gap(batch, -1, 0.0) is None
