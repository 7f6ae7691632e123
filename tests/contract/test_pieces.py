"""Rollouts that are watched and cut while they are decoded, and read piece by piece."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.contract import oracle
from tests.contract.backends import BACKENDS, THIRD_PARTY, engine_config
from tests.contract.oracle import MAX_MODEL_LEN, request
from topd_ray.engines.open import open_generation, open_teacher
from topd_ray.engines.protocols import (
    Generation,
    GenerationRequest,
    Progress,
    RolloutEngine,
)
from topd_ray.errors import TopdError
from topd_ray.messages import Ints

pytestmark = THIRD_PARTY

STRIDE = 8


@pytest.fixture(scope="module", params=[*BACKENDS, "fake"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(backend: str, student_folder: Path) -> Iterator[RolloutEngine]:
    config = engine_config(backend)
    opened = open_generation(student_folder, config, max_model_len=MAX_MODEL_LEN)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def asked() -> list[GenerationRequest]:
    prompts = oracle.prompts(3, [5, 9, 33, 40, 12, 7])
    return [
        request(
            prompt,
            request_id=f"r{i}",
            max_tokens=60,
            temperature=1.0,
            seed=i,
            num_top=4,
        )
        for i, prompt in enumerate(prompts)
    ]


def whole(
    engine: RolloutEngine, asked: list[GenerationRequest]
) -> dict[str, Generation]:
    return {answer.request_id: answer for answer in engine.generate(asked)}


def test_pieces_grow_into_what_would_have_been_decoded_anyway(engine, asked):
    expected = whole(engine, asked)
    assert max(len(answer.token_ids_N) for answer in expected.values()) > 2 * STRIDE
    seen: dict[str, list[int]] = {}
    finished = {}
    for outputs in engine.generate_in_pieces(asked, stride=STRIDE, cuts={}):
        for output in outputs:
            name = output.request_id
            tokens = output.token_ids_N.tolist()
            assert tokens == expected[name].token_ids_N[: len(tokens)].tolist()
            if isinstance(output, Progress):
                seen.setdefault(name, []).append(len(tokens))
            else:
                finished[name] = output
    for name, answer in expected.items():
        assert_same(finished[name], answer)
        lengths = seen.get(name, [])
        steps = np.diff([0, *lengths, len(answer.token_ids_N)])
        assert (steps <= STRIDE).all()


def test_a_request_is_cut_to_its_first_tokens_and_the_others_are_as_before(
    engine, asked
):
    expected = whole(engine, asked)
    longest = max(expected, key=lambda name: len(expected[name].token_ids_N))
    cuts: dict[str, int] = {}
    finished = {}
    for outputs in engine.generate_in_pieces(asked, stride=STRIDE, cuts=cuts):
        for output in outputs:
            if isinstance(output, Generation):
                finished[output.request_id] = output
            elif output.request_id == longest and len(output.token_ids_N) > 2:
                cuts[longest] = 3
    cut = finished.pop(longest)
    assert cut.finish_reason == "cut"
    assert cut.token_ids_N.tolist() == expected[longest].token_ids_N[:3].tolist()
    np.testing.assert_allclose(
        cut.logp_N, expected[longest].logp_N[:3], rtol=1e-4, atol=1e-5
    )
    assert cut.top_ids_NM.shape == (3, 4)
    # The engine may have decoded on before it saw the cut, and says by how much.
    assert 0 <= cut.num_overshot < len(expected[longest].token_ids_N) - 3
    for name, answer in finished.items():
        assert_same(answer, expected[name])


def test_a_cut_that_comes_too_late_changes_nothing(engine, asked):
    expected = whole(engine, asked)
    cuts = dict.fromkeys(expected, 1000)
    for outputs in engine.generate_in_pieces(asked, stride=STRIDE, cuts=cuts):
        for output in outputs:
            if isinstance(output, Generation):
                assert_same(output, expected[output.request_id])


def test_a_later_call_ends_the_pieces(engine, asked):
    pieces = engine.generate_in_pieces(asked, stride=STRIDE, cuts={})
    next(pieces)
    assert whole(engine, asked)
    with pytest.raises(TopdError, match="a later call of the same engine"):
        list(pieces)


def test_states_that_are_read_on_are_those_of_one_reading(backend, teacher_folder):
    engine = open_teacher(teacher_folder, engine_config(backend), max_model_len=300)
    try:
        sequences = oracle.prompts(5, [150, 130, 70])
        # Begins as the first one does: its cache reaches beyond what was read of it.
        sequences.append(np.concatenate([sequences[0][:100], sequences[1][:20]]))
        expected = engine.hidden_states(sequences)
        fresh = [mixed(sequence) for sequence in sequences]
        engine.hidden_states([sequence[:40] for sequence in fresh])
        for starts in ([40] * 4, [69, 1, 40, 119]):
            for read in (sequences, fresh):
                whole = expected if read is sequences else engine.hidden_states(read)
                states = engine.hidden_states(read, starts)
                for got_LD, all_LD, start in zip(states, whole, starts, strict=True):
                    assert got_LD.shape == all_LD[start:].shape
                    np.testing.assert_allclose(got_LD, all_LD[start:], atol=2e-5)
    finally:
        engine.close()


def mixed(sequence: Ints) -> Ints:
    return np.ascontiguousarray(sequence[::-1])


def assert_same(got: Generation, expected: Generation) -> None:
    assert got.token_ids_N.tolist() == expected.token_ids_N.tolist()
    assert got.finish_reason == expected.finish_reason
    assert got.num_overshot == 0
    np.testing.assert_allclose(got.logp_N, expected.logp_N, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got.top_ids_NM, expected.top_ids_NM)
