"""States of the middle layer against those that transformers lists layer by layer."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.make import probes
from topd_ray.config.base import EngineConfig
from topd_ray.messages import HIGH, PAD, CandidateSet
from topd_ray.models.architecture import load_causal_lm
from topd_ray.studies.middle_layer import MiddleLayer

ENGINE = EngineConfig(backend="hf", dtype="float32")


@pytest.fixture
def middle(teacher_folder: Path) -> MiddleLayer:
    return MiddleLayer(teacher_folder, ENGINE)


def listed_states(folder: Path, sequence: np.ndarray, layer: int) -> np.ndarray:
    model = load_causal_lm(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(sequence[None].astype(np.int64))
    with torch.inference_mode():
        output = model(ids, output_hidden_states=True)
    return output.hidden_states[layer][0].numpy()


def candidates(*positions: int) -> CandidateSet:
    return CandidateSet(
        rollout_id="r0",
        policy_version=0,
        prompt_ids_P=np.array([20, 21], np.int32),
        teacher_prompt_ids_P=np.array([22, 23, 24], np.int32),
        response_ids_N=np.arange(6, 16, dtype=np.int32),
        positions_W=np.array(positions, np.int32),
        losses_W=np.ones(len(positions), np.float32),
        groups_W=np.full(len(positions), HIGH, np.int32),
        truncated=False,
    )


def test_the_states_are_those_behind_half_of_the_layers(
    middle: MiddleLayer, teacher_folder: Path
) -> None:
    sequence = np.array([7, 30, 8, 41, 9], np.int32)
    assert middle.depth == 1
    (states_LD,) = middle.states([sequence])
    expected_LD = listed_states(teacher_folder, sequence, layer=1)
    np.testing.assert_allclose(states_LD, expected_LD, atol=1e-5)
    other_LD = listed_states(teacher_folder, sequence, layer=0)
    assert not np.allclose(states_LD, other_LD, atol=1e-2)


def test_a_sequence_that_begins_another_has_the_states_that_it_has_alone(
    middle: MiddleLayer,
) -> None:
    long = np.array([7, 30, 8, 41, 9], np.int32)
    other = np.array([7, 31, 8], np.int32)
    together = middle.states([long[:2], other, long, long[:4]])
    for states_LD, sequence in zip(
        together, [long[:2], other, long, long[:4]], strict=True
    ):
        (alone_LD,) = middle.states([sequence])
        assert states_LD.shape == (len(sequence), 64)
        np.testing.assert_allclose(states_LD, alone_LD, atol=1e-5)


def test_each_window_is_read_behind_its_own_prefix(
    middle: MiddleLayer, teacher_folder: Path
) -> None:
    found = candidates(2, 5)
    response_N = found.response_ids_N
    student_WK = np.array([response_N[2:6], [*response_N[5:8], PAD]], np.int32)
    windows = probes(
        positions=(2, 5),
        distances=(0.5, 0.5),
        num_student=(4, 3),
        student_ids_WK=student_WK,
        num_teacher_W=np.array([4, 2], np.int32),
    )
    student_WKD, teacher_WKD = middle.window_states(found, windows)
    prompt = found.teacher_prompt_ids_P
    second = np.concatenate([prompt, response_N[:8]])
    expected = listed_states(teacher_folder, second, layer=1)[-3:]
    np.testing.assert_allclose(student_WKD[1, :3], expected, atol=1e-5)
    assert not student_WKD[1, 3].any()
    second = np.concatenate([prompt, response_N[:5], [30, 31]])
    expected = listed_states(teacher_folder, second, layer=1)[-2:]
    np.testing.assert_allclose(teacher_WKD[1, :2], expected, atol=1e-5)
    assert not teacher_WKD[1, 2:].any()
