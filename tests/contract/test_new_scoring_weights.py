"""Every scoring back end takes new weights in place, all or none."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.contract import oracle
from tests.contract.backends import BACKENDS, THIRD_PARTY, engine_config
from tests.contract.oracle import MAX_MODEL_LEN, bits, named_arrays, perturbed
from tests.make import rollout
from topd_ray.config import CandidatesConfig, TeacherConfig
from topd_ray.engines.open import open_teacher
from topd_ray.engines.protocols import TeacherEngine
from topd_ray.errors import TopdError
from topd_ray.messages import TopkSignal
from topd_ray.teacher import TeacherActor
from topd_ray.weights.buckets import in_buckets

pytestmark = THIRD_PARTY

LENGTHS = [1, 3, 40, 65, 100]


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(
    request: pytest.FixtureRequest, student_folder: Path, teacher_folder: Path
) -> Path:
    return student_folder if request.param == "tied" else teacher_folder


@pytest.fixture(scope="module", params=BACKENDS)
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[TeacherEngine]:
    opened = open_teacher(
        folder, engine_config(request.param), max_model_len=MAX_MODEL_LEN
    )
    yield opened
    opened.close()


def assert_states_are(engine: TeacherEngine, model: torch.nn.Module, seed: int) -> None:
    sequences = oracle.prompts(seed, LENGTHS)
    for got, sequence in zip(engine.hidden_states(sequences), sequences, strict=True):
        np.testing.assert_allclose(got, oracle.hidden(model, sequence), atol=1e-4)


def test_new_weights_give_the_states_of_transformers(engine, folder):
    for seed in (1, 2):
        before = engine.hidden_states(oracle.prompts(seed, LENGTHS))
        model = perturbed(folder, seed)
        engine.load_weights(iter(named_arrays(model)))
        assert_states_are(engine, model, seed)
        after = engine.hidden_states(oracle.prompts(seed, LENGTHS))
        assert all(
            np.abs(a - b).max() > 0.1 for a, b in zip(after, before, strict=True)
        )


def test_bfloat16_arrives_as_bits_in_uint16(engine, folder):
    model = perturbed(folder, 3)
    engine.load_weights(bits(model))
    assert_states_are(engine, model, 3)


def test_a_tied_head_may_be_sent_beside_the_embeddings(engine, folder):
    model = perturbed(folder, 4)
    engine.load_weights([(name, t.numpy()) for name, t in model.state_dict().items()])
    assert_states_are(engine, model, 4)


def test_weights_are_refused_by_name_unless_whole_and_nothing_changes(engine, folder):
    model, other = perturbed(folder, 5), dict(named_arrays(perturbed(folder, 6)))
    engine.load_weights(named_arrays(model))
    name = "model.layers.1.mlp.up_proj.weight"
    missing = {key: array for key, array in other.items() if key != name}
    for bad, message in (
        (missing, f"{name} is missing"),
        (other | {name: other[name][:1]}, f"{name} has shape"),
        (other | {"model.more": other[name]}, "model.more is unknown"),
    ):
        with pytest.raises(TopdError, match=message):
            engine.load_weights(bad.items())
    assert_states_are(engine, model, 5)


def test_a_teacher_that_follows_reads_as_the_new_model(engine, folder):
    config = TeacherConfig.model_validate(
        {
            "source": "student",
            "signal": "topk",
            "top_k": 64,
            "engine": {"dtype": "float32"},
        }
    )
    actor = TeacherActor(config, CandidatesConfig(), folder, lambda: engine)
    model = perturbed(folder, 7)
    actor.update(
        9, list(in_buckets(named_arrays(model), policy_version=9, max_bytes=4096))
    )
    prompt, response = oracle.prompts(8, [12, 30])
    one = rollout(length=30, response_ids_N=response, teacher_prompt_ids_P=prompt)
    signal = actor.score([one])[0].signal
    assert isinstance(signal, TopkSignal)
    logq_NV = oracle.response_logp(model, prompt, response)
    named_NM = np.take_along_axis(logq_NV, signal.ids_NM.astype(np.int64), axis=1)
    np.testing.assert_allclose(signal.logq_NM, named_NM, atol=1e-4)


def test_a_teacher_that_slept_reads_as_before(engine, folder):
    model = perturbed(folder, 3)
    engine.load_weights(iter(named_arrays(model)))
    engine.sleep()
    with pytest.raises(TopdError, match="hidden_states: the engine is asleep"):
        engine.hidden_states(oracle.prompts(3, LENGTHS))
    engine.wake()
    assert_states_are(engine, model, 3)
