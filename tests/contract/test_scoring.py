"""Every scoring back end gives the hidden states of transformers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.contract import oracle
from tests.contract.backends import BACKENDS, THIRD_PARTY, engine_config
from tests.make import rollout
from topd_ray.config import CandidatesConfig, TeacherConfig
from topd_ray.engines.open import open_teacher
from topd_ray.engines.protocols import TeacherEngine
from topd_ray.errors import UserError
from topd_ray.messages import SampledSignal, TopkSignal
from topd_ray.teacher import TeacherActor

pytestmark = THIRD_PARTY

MAX_MODEL_LEN = 500
LENGTHS = [1, 2, 31, 32, 33, 200, 7, MAX_MODEL_LEN]


@pytest.fixture(scope="module", params=BACKENDS)
def engine(
    request: pytest.FixtureRequest, teacher_folder: Path
) -> Iterator[TeacherEngine]:
    opened = open_teacher(
        teacher_folder, engine_config(request.param), max_model_len=MAX_MODEL_LEN
    )
    yield opened
    opened.close()
    opened.close()


@pytest.fixture(scope="module")
def model(teacher_folder: Path) -> torch.nn.Module:
    return oracle.load(teacher_folder)


@pytest.mark.parametrize("copies", [1, 20])
def test_hidden_states_equal_transformers_after_the_final_norm(engine, model, copies):
    sequences = oracle.prompts(0, LENGTHS) * copies
    expected = [
        oracle.hidden(model, sequence) for sequence in sequences[: len(LENGTHS)]
    ]
    states = engine.hidden_states(sequences)
    assert len(states) == len(sequences)
    for got, wanted in zip(states, expected * copies, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("signal", ["topk", "sampled"])
def test_the_teachers_signal_is_transformers_log_softmax(
    engine, model, teacher_folder, signal
):
    config = TeacherConfig.model_validate(
        {"model": "t", "signal": signal, "top_k": 5, "engine": {"dtype": "float32"}}
    )
    actor = TeacherActor(config, CandidatesConfig(), teacher_folder, lambda: engine)
    for prompt, response in zip(
        *(oracle.prompts(seed, [1, 9, 40]) for seed in (5, 6)), strict=True
    ):
        one = rollout(
            length=len(response), response_ids_N=response, teacher_prompt_ids_P=prompt
        )
        got = actor.score([one])[0].signal
        logq_NV = oracle.response_logp(model, prompt, response)
        if isinstance(got, TopkSignal):
            np.testing.assert_allclose(
                got.logq_NM, -np.sort(-logq_NV)[:, :5], atol=1e-4
            )
            named_NM = np.take_along_axis(logq_NV, got.ids_NM.astype(np.int64), axis=1)
            np.testing.assert_allclose(got.logq_NM, named_NM, atol=1e-4)
        else:
            assert isinstance(got, SampledSignal)
            logq_N = logq_NV[np.arange(len(response)), response]
            np.testing.assert_allclose(got.logq_N, logq_N, atol=1e-4)


def test_the_head_on_hidden_states_gives_the_models_log_probabilities(engine, model):
    sequence = oracle.prompts(1, [90])[0]
    state = torch.from_numpy(engine.hidden_states([sequence])[0])
    with torch.no_grad():
        logp = model.lm_head(state).double().log_softmax(-1).numpy()
    np.testing.assert_allclose(logp, oracle.all_logp(model, sequence), atol=1e-4)


def test_a_sequence_has_the_same_states_in_any_company(engine):
    rng = np.random.default_rng(4)
    sequences = oracle.prompts(4, rng.integers(1, 90, 150).tolist())
    for sequence, together in list(
        zip(sequences, engine.hidden_states(sequences), strict=True)
    )[::7]:
        # States of size ~3 in float32: sums of 64 and 128 products in another order.
        np.testing.assert_allclose(
            engine.hidden_states([sequence])[0], together, atol=1e-5
        )


def test_the_same_sequences_give_the_same_states_again(engine):
    sequences = oracle.prompts(2, LENGTHS)
    for first, again in zip(
        engine.hidden_states(sequences), engine.hidden_states(sequences), strict=True
    ):
        np.testing.assert_array_equal(first, again)


def test_no_sequences_give_no_states(engine):
    assert engine.hidden_states([]) == []


def test_a_sequence_too_long_or_empty_is_refused_by_place(engine):
    fine, long = oracle.prompts(3, [4, MAX_MODEL_LEN + 1])
    with pytest.raises(
        UserError, match=rf"sequence 1: {MAX_MODEL_LEN + 1} tokens exceed"
    ):
        engine.hidden_states([fine, long])
    with pytest.raises(UserError, match="sequence 1: it is empty"):
        engine.hidden_states([fine, fine[:0]])
    assert engine.hidden_states([fine])[0].shape == (4, 64)
