"""The fake engine keeps the shapes of the protocol and repeats its answers."""

from pathlib import Path

import numpy as np
import pytest

from tests.contract import oracle
from tests.contract.oracle import MAX_MODEL_LEN, request, run
from tests.tiny import EOS_ID
from topd_ray.config.base import EngineConfig
from topd_ray.engines.open import open_generation, open_teacher
from topd_ray.engines.protocols import GenerationEngine
from topd_ray.errors import UserError

FAKE = EngineConfig(backend="fake")


@pytest.fixture
def engine(student_folder: Path) -> GenerationEngine:
    return open_generation(student_folder, FAKE, max_model_len=MAX_MODEL_LEN)


def sampled(count: int) -> list:
    return [
        request(
            p, request_id=f"r{i}", seed=i, temperature=1.0, num_top=4, max_tokens=40
        )
        for i, p in enumerate(oracle.prompts(0, [5, 9] * count))
    ]


def test_generations_have_the_shape_of_the_protocol(engine):
    answers = run(engine, sampled(20))
    assert {g.finish_reason for g in answers} == {"stop", "length"}
    assert len({len(g.token_ids_N) for g in answers}) > 10
    for answer in answers:
        length = len(answer.token_ids_N)
        assert (answer.token_ids_N[-1] == EOS_ID) == (answer.finish_reason == "stop")
        assert EOS_ID not in answer.token_ids_N[:-1]
        assert answer.finish_reason == "stop" or length == 40
        assert answer.logp_N.shape == (length,)
        assert answer.top_ids_NM.shape == answer.top_logp_NM.shape == (length, 4)
        assert (np.diff(answer.top_logp_NM, axis=1) <= 0).all()


def test_a_request_has_one_answer_in_any_company(engine):
    requests = sampled(5)
    together = [g.token_ids_N.tolist() for g in run(engine, requests)]
    alone = [run(engine, [r])[0].token_ids_N.tolist() for r in requests[::-1]][::-1]
    assert together == alone


def test_greedy_takes_the_most_likely_token_and_continues_its_own_prefix(engine):
    prompt = oracle.prompts(1, [6])[0]
    whole = run(engine, [request(prompt, num_top=1, seed=3)])[0]
    assert whole.top_ids_NM[:, 0].tolist() == whole.token_ids_N.tolist()
    prefix = np.concatenate([prompt, whole.token_ids_N[:4]])
    rest = run(engine, [request(prefix, seed=4, max_tokens=28)])[0]
    assert rest.token_ids_N.tolist() == whole.token_ids_N[4:].tolist()


def test_new_weights_make_another_model(engine):
    prompts = oracle.prompts(2, [5, 6])
    before = oracle.tokens(engine, prompts)
    engine.load_weights([("w", np.ones(3, np.float32))])
    once = oracle.tokens(engine, prompts)
    engine.load_weights([("w", np.zeros(3, np.float32))])
    engine.load_weights([("w", np.ones(3, np.float32))])
    assert before != once == oracle.tokens(engine, prompts)


def test_what_cannot_fit_is_refused(engine):
    with pytest.raises(UserError, match="exceeds max_model_len"):
        engine.generate([request(oracle.prompts(3, [10])[0], max_tokens=MAX_MODEL_LEN)])


def test_hidden_states_depend_on_the_prefix_alone(teacher_folder):
    scoring = open_teacher(teacher_folder, FAKE, max_model_len=MAX_MODEL_LEN)
    sequence = oracle.prompts(4, [12])[0]
    whole, part = scoring.hidden_states([sequence, sequence[:5]])
    assert whole.shape == (12, 64)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole[:5], part)


def test_new_weights_make_other_hidden_states(teacher_folder):
    scoring = open_teacher(teacher_folder, FAKE, max_model_len=MAX_MODEL_LEN)
    sequence = oracle.prompts(4, [12])
    states = [scoring.hidden_states(sequence)[0]]
    for value in (1, 0, 1):
        scoring.load_weights([("w", np.full(3, value, np.float32))])
        states.append(scoring.hidden_states(sequence)[0])
    start, once, other, again = states
    np.testing.assert_array_equal(once, again)
    assert len({one.tobytes() for one in (start, once, other)}) == 3


def test_the_configs_max_model_len_wins(student_folder):
    config = EngineConfig(backend="fake", max_model_len=8)
    short = open_generation(student_folder, config, max_model_len=MAX_MODEL_LEN)
    with pytest.raises(UserError, match="exceeds max_model_len=8"):
        short.generate([request(oracle.prompts(5, [4])[0], max_tokens=5)])
