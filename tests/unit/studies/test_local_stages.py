import numpy as np
import pytest

from topd_ray.errors import UserError
from topd_ray.messages import HIGH, LOW, RANDOM, CandidateSet, ProbeSet
from topd_ray.studies.local_stages import LocalStages


@pytest.fixture
def stages(make_study) -> LocalStages:
    return LocalStages(make_study().load_run())


@pytest.fixture
def probed(stages: LocalStages) -> tuple[list[CandidateSet], list[ProbeSet]]:
    candidates = stages.candidates(
        stages.score(stages.roll_out(stages.prompts(3))), controls=True
    )
    return candidates, stages.probe(candidates)


def distances(probes: list[ProbeSet]) -> np.ndarray:
    return np.concatenate([probe_set.d_ot_W for probe_set in probes])


def test_two_vllm_engines_are_refused_by_name(make_study) -> None:
    overrides = ["teacher.engine.backend=vllm", "rollout.engine.backend=vllm"]
    config = make_study(overrides=overrides).load_run()
    with pytest.raises(UserError, match=r"teacher\.engine\.backend=vllm.*backend=hf"):
        LocalStages(config)


def test_the_groups_are_of_equal_size_and_the_losses_are_ordered(probed) -> None:
    candidates, probes = probed
    for found, probe in zip(candidates, probes, strict=True):
        counts = [int((found.groups_W == group).sum()) for group in (HIGH, RANDOM, LOW)]
        assert counts[0] == counts[1] == counts[2] > 0
        assert found.losses_W[found.groups_W == HIGH].min() >= found.losses_W.max(
            where=found.groups_W != HIGH, initial=-np.inf
        )
        np.testing.assert_array_equal(probe.groups_W, found.groups_W)


def test_the_recorded_continuations_give_the_same_distances(
    stages: LocalStages, probed
) -> None:
    candidates, probes = probed
    np.testing.assert_array_equal(
        distances(stages.probe_again(candidates, probes)), distances(probes)
    )


def test_a_shorter_window_is_what_decoding_a_shorter_window_gives(
    make_study, probed
) -> None:
    candidates, probes = probed
    decoded = LocalStages(make_study(overrides=["probe.window=4"]).load_run()).probe(
        candidates
    )
    again = LocalStages(make_study().load_run()).probe_again(
        candidates, probes, window=4
    )
    np.testing.assert_array_equal(distances(again), distances(decoded))
    assert not np.array_equal(distances(again), distances(probes))


def test_the_exact_distance_is_the_smallest_and_epsilon_raises_it(
    stages: LocalStages, probed
) -> None:
    exact = distances(stages.probe_again(*probed, solver="exact"))
    sharp = distances(stages.probe_again(*probed, epsilon=0.05))
    blurred = distances(stages.probe_again(*probed, epsilon=0.5))
    assert (exact <= sharp + 1e-5).all()
    assert sharp.mean() < blurred.mean()


def test_the_student_s_table_gives_other_distances(stages: LocalStages, probed) -> None:
    other = distances(stages.probe_again(*probed, embedding="student"))
    assert not np.allclose(other, distances(probed[1]))


def test_a_centred_table_gives_other_distances(stages: LocalStages, probed) -> None:
    other = distances(stages.probe_again(*probed, centred=True))
    assert not np.allclose(other, distances(probed[1]))


def test_fresh_student_tokens_that_are_the_teacher_s_are_at_distance_0(
    stages: LocalStages, probed
) -> None:
    candidates, probes = probed
    copied = stages.probe_again(
        candidates,
        probes,
        student_ids=[probe_set.teacher_ids_WK for probe_set in probes],
    )
    assert not distances(copied).any()


def test_the_teacher_s_reading_agrees_with_its_score(stages: LocalStages) -> None:
    rollouts = stages.roll_out(stages.prompts(2))
    for reading in stages.read(rollouts, top=64):
        response_N = reading.rollout.response_ids_N
        ids_NM = reading.signal.ids_NM
        logq_NM = reading.signal.logq_NM
        spoken_N = logq_NM[
            np.arange(len(ids_NM)), (ids_NM == response_N[:, None]).argmax(1)
        ]
        np.testing.assert_allclose(-reading.token_loss_N, spoken_N, rtol=1e-5)
