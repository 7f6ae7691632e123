"""Every generating back end takes new weights in place, all or none."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.contract import oracle
from tests.contract.backends import DECODERS, THIRD_PARTY, open_decoder
from tests.contract.oracle import MAX_MODEL_LEN, bits, named_arrays, perturbed
from topd_ray.engines.protocols import GenerationEngine
from topd_ray.errors import TopdError

pytestmark = THIRD_PARTY

LENGTHS = [3, 40, 65, 100]


@cache
def answers(
    folder: Path, seed: int, prompts_seed: int, *, rounded: bool = False
) -> list[list[int]]:
    """Return what transformers decodes with the perturbed weights, once for all kinds.

    `rounded`: to bfloat16.
    """
    model = perturbed(folder, seed)
    if rounded:
        bits(model)
    prompts = oracle.prompts(prompts_seed, LENGTHS)
    return [oracle.greedy(model, prompt, 32) for prompt in prompts]


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(
    request: pytest.FixtureRequest, student_folder: Path, teacher_folder: Path
) -> Path:
    return student_folder if request.param == "tied" else teacher_folder


@pytest.fixture(scope="module", params=DECODERS)
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[GenerationEngine]:
    opened = open_decoder(request.param, folder, max_model_len=MAX_MODEL_LEN)
    yield opened
    opened.close()


def test_new_weights_answer_as_transformers_and_no_cached_prefix_is_stale(
    engine, folder
):
    prompts = oracle.prompts(1, LENGTHS)
    for seed in (1, 2):
        before = oracle.tokens(engine, prompts)  # now in the prefix cache
        model = perturbed(folder, seed)
        engine.load_weights(iter(named_arrays(model)))
        expected = answers(folder, seed, 1)
        assert expected != before
        assert oracle.tokens(engine, prompts) == expected


def test_log_probabilities_are_those_of_the_new_weights(engine, folder):
    model, prompt = perturbed(folder, 3), oracle.prompts(2, [70])[0]
    list(engine.generate([oracle.request(prompt)]))
    engine.load_weights(named_arrays(model))
    got = oracle.run(engine, [oracle.request(prompt, temperature=1.0, num_top=1)])[0]
    logp_NV = oracle.response_logp(model, prompt, got.token_ids_N)
    rows = np.arange(len(got.token_ids_N))
    np.testing.assert_allclose(got.logp_N, logp_NV[rows, got.token_ids_N], atol=1e-4)


def test_bfloat16_arrives_as_bits_in_uint16(engine, folder):
    model = perturbed(folder, 4)
    engine.load_weights(bits(model))
    prompts = oracle.prompts(3, LENGTHS)
    assert oracle.tokens(engine, prompts) == answers(folder, 4, 3, rounded=True)


def test_a_tied_head_may_be_sent_beside_the_embeddings(engine, folder):
    model = perturbed(folder, 5)
    engine.load_weights([(name, t.numpy()) for name, t in model.state_dict().items()])
    prompts = oracle.prompts(4, LENGTHS)
    assert oracle.tokens(engine, prompts) == answers(folder, 5, 4)


def test_weights_are_refused_by_name_unless_whole_and_nothing_changes(engine, folder):
    model, prompts = perturbed(folder, 6), oracle.prompts(5, LENGTHS)
    engine.load_weights(named_arrays(model))
    before, other = (
        oracle.tokens(engine, prompts),
        dict(named_arrays(perturbed(folder, 7))),
    )
    name = "model.layers.1.mlp.up_proj.weight"
    missing = {key: array for key, array in other.items() if key != name}
    for bad, message in (
        (missing, f"{name} is missing"),
        (other | {name: other[name][:1]}, f"{name} has shape"),
        (other | {"model.more": other[name]}, "model.more is unknown"),
    ):
        with pytest.raises(TopdError, match=message):
            engine.load_weights(bad.items())
    assert oracle.tokens(engine, prompts) == before


def test_new_weights_end_a_generation_under_way(engine, folder):
    prompts = oracle.prompts(6, LENGTHS * 30)
    under_way = engine.generate(
        [
            oracle.request(
                p, request_id=f"r{i}", max_tokens=80, seed=i, temperature=1.0
            )
            for i, p in enumerate(prompts)
        ]
    )
    next(under_way)
    model = perturbed(folder, 8)
    engine.load_weights(named_arrays(model))
    with pytest.raises(TopdError, match="ended"):
        list(under_way)
    assert oracle.tokens(engine, prompts[:4]) == answers(folder, 8, 6)


def test_an_engine_that_slept_answers_as_before_and_refuses_calls_asleep(
    engine, folder
):
    engine.load_weights(iter(named_arrays(perturbed(folder, 1))))
    prompts = oracle.prompts(1, LENGTHS)
    before = oracle.tokens(engine, prompts)
    engine.sleep()
    engine.sleep()  # a second time changes nothing
    with pytest.raises(TopdError, match="generate: the engine is asleep"):
        oracle.tokens(engine, prompts)
    with pytest.raises(TopdError, match="load_weights: the engine's weights are"):
        engine.load_weights(iter(named_arrays(perturbed(folder, 2))))
    engine.wake()
    engine.wake()
    assert oracle.tokens(engine, prompts) == before == answers(folder, 1, 1)


def test_new_weights_reach_an_engine_of_which_only_the_weights_are_awake(
    engine, folder
):
    prompts = oracle.prompts(1, LENGTHS)
    engine.load_weights(iter(named_arrays(perturbed(folder, 1))))
    oracle.tokens(engine, prompts)  # now in the prefix cache
    engine.sleep()
    engine.wake("weights")
    with pytest.raises(TopdError, match="generate: the engine is asleep"):
        oracle.tokens(engine, prompts)
    engine.load_weights(iter(named_arrays(perturbed(folder, 2))))
    engine.wake("all")
    assert oracle.tokens(engine, prompts) == answers(folder, 2, 1)
