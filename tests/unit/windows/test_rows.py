"""The row of a rollout: trunk, resampled windows, and the targets of both kinds."""

import numpy as np

from tests import make
from topd_ray.messages import PAD
from topd_ray.windows.rows import make_row


def test_a_resampled_window_has_the_row_of_the_example_of_train_batch() -> None:
    scored = make.scored(
        "00000012.0",
        length=5,
        prompt_ids_P=np.array([20, 21, 22], np.int32),
        response_ids_N=np.array([6, 7, 8, 9, 2], np.int32),
    )
    probe_set = make.probes(
        "00000012.0",
        positions=(1,),
        distances=(0.31,),
        num_student=(3,),
        resampled=True,
        student_ids_WK=np.array([[7, 12, 2, PAD]], np.int32),
        teacher_ids_WK=np.array([[11, 8, 9, 2]], np.int32),
    )
    row = make_row(scored, probe_set, threshold=0.1)
    assert row.token_ids_L.tolist() == [20, 21, 22, 6, 7, 8, 9, 7, 12]
    assert row.length_S.tolist() == [7, 2]
    assert row.branch_S.tolist() == [0, 4]
    assert row.targets is not None
    assert row.targets.place_Q.tolist() == [1, 5, 6]
    assert row.targets.ids_QK.tolist() == [[11, 8, 9, 2]] * 3
    np.testing.assert_allclose(row.targets.weights_QK, 0.25, rtol=1e-6)
