"""A teacher's engine scores and continues for several threads at once."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.contract import oracle
from tests.contract.backends import BACKENDS, THIRD_PARTY, engine_config
from tests.contract.oracle import named_arrays, perturbed, request
from topd_ray.engines.open import open_teacher
from topd_ray.engines.protocols import GenerationRequest, TeacherEngine
from topd_ray.errors import TopdError
from topd_ray.messages import Ints

pytestmark = THIRD_PARTY

MAX_MODEL_LEN = 500
BLOCK = 32
TIMEOUT_S = 120
"""Far beyond what any of this takes: a wait that never ends fails here."""


@pytest.fixture(scope="module", params=[*BACKENDS, "fake"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(backend: str, teacher_folder: Path) -> Iterator[TeacherEngine]:
    config = engine_config(backend)
    opened = open_teacher(teacher_folder, config, max_model_len=MAX_MODEL_LEN)
    yield opened
    opened.close()
    opened.close()


def probes(
    sequence: Ints, every: int = 7, **changes: object
) -> list[GenerationRequest]:
    """Continuations from places along a sequence, greedy and sampled by turns."""
    return [
        request(
            sequence[:end],
            **{
                "request_id": f"{end}",
                "max_tokens": 20,
                "seed": end,
                "temperature": end % 2,
            }
            | changes,
        )
        for end in range(1, len(sequence), every)
    ]


def answers(
    engine: TeacherEngine, requests: list[GenerationRequest]
) -> dict[str, list[int]]:
    return {g.request_id: g.token_ids_N.tolist() for g in engine.generate(requests)}


def in_threads(*works: Callable[[], object]) -> list[object]:
    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(work) for work in works]
        return [future.result(TIMEOUT_S) for future in futures]


def test_threads_that_overlap_get_what_each_would_alone(engine):
    scored = [oracle.prompts(seed, [150, 40, 33, 90]) for seed in range(4)]
    requested = [probes(sequences[0]) for sequences in scored]
    states = [engine.hidden_states(sequences) for sequences in scored]
    tokens = [answers(engine, requests) for requests in requested]

    def score_all() -> list:
        return [engine.hidden_states(sequences) for sequences in scored]

    got = in_threads(
        *(lambda requests=r: answers(engine, requests) for r in requested),
        score_all,
        score_all,
    )
    assert got[:4] == tokens
    for again in got[4:]:
        for one, other in zip(again, states, strict=True):
            # To the bit: a run's losses must not depend on which call was faster.
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_states_do_not_depend_on_what_the_cache_holds(engine):
    sequence = oracle.prompts(10, [200])[0]
    cold = engine.hidden_states([sequence])[0]
    answers(engine, probes(sequence))
    np.testing.assert_array_equal(engine.hidden_states([sequence])[0], cold)


def test_probes_behind_scoring_take_their_prefix_from_the_cache_in_whole_blocks(
    engine, backend
):
    sequence = oracle.prompts(11, [200])[0]
    engine.hidden_states([sequence])
    for one in engine.generate(probes(sequence)):
        # The token before the first new one is always computed: its logits are wanted.
        blocks = (int(one.request_id) - 1) // BLOCK if backend == "vllm" else 0
        assert one.num_cached_tokens == blocks * BLOCK


def test_a_caller_who_errs_leaves_the_others_alone(engine):
    sequence = oracle.prompts(12, [100])[0]
    expected = answers(engine, probes(sequence))

    def abandon() -> None:
        for _ in range(5):
            begun = engine.generate(probes(sequence, max_tokens=100))
            next(begun)
            del begun

    def err() -> None:
        for _ in range(5):
            with pytest.raises(TopdError, match="empty"):
                engine.hidden_states([sequence, sequence[:0]])

    assert (
        in_threads(abandon, err, lambda: answers(engine, probes(sequence)))[2]
        == expected
    )


def test_new_weights_change_both_jobs_and_no_cached_prefix_is_stale(
    engine, backend, teacher_folder
):
    if backend == "fake":
        pytest.skip("its weights are no model's; test_fake has its own")
    sequence = oracle.prompts(13, [120])[0]
    engine.hidden_states([sequence])
    answers(engine, probes(sequence, states=True))
    begun = engine.generate(probes(sequence, max_tokens=100, states=True))
    next(begun)
    model = perturbed(teacher_folder, 4)
    engine.load_weights(named_arrays(model))
    with pytest.raises(TopdError, match="ended"):
        next(begun)
    requests = probes(sequence, every=13, temperature=0.0)
    for one, got in zip(requests, oracle.run(engine, requests), strict=True):
        if one is requests[0]:
            assert got.num_cached_tokens == 0
        assert got.token_ids_N.tolist() == oracle.greedy(model, one.prompt_ids, 20)
    np.testing.assert_allclose(
        engine.hidden_states([sequence])[0], oracle.hidden(model, sequence), atol=1e-4
    )


def test_more_than_the_cache_holds_changes_nothing(engine):
    """Requests are preempted and computed again; their states still come whole."""
    sequences = oracle.prompts(14, [400] * 40)
    undisturbed = engine.hidden_states(sequences)
    requests = [
        request(s[:300], request_id=f"{i}", max_tokens=100, temperature=1.0, seed=i)
        for i, s in enumerate(sequences)
    ]
    expected = answers(engine, requests[::8])
    tokens, states = in_threads(
        lambda: answers(engine, requests), lambda: engine.hidden_states(sequences)
    )
    assert isinstance(tokens, dict)
    assert isinstance(states, list)
    assert {key: tokens[key] for key in expected} == expected
    for one, got in zip(undisturbed, states, strict=True):
        np.testing.assert_array_equal(got, one)


def test_nothing_is_remembered_of_requests_that_are_over(engine, backend):
    """A run asks for millions of continuations."""
    if backend != "vllm":
        pytest.skip("only vLLM's requests have names of their own")
    sequence = oracle.prompts(17, [100])[0]
    engine.hidden_states([sequence])
    answers(engine, probes(sequence))
    answers(engine, probes(sequence, states=True))
    begun = engine.generate(probes(sequence, max_tokens=100, states=True))
    next(begun)
    del begun

    def known(vllm) -> list[int]:
        (pieces,) = vllm.engine.collective_rpc(
            lambda worker: len(worker.kept_states._pieces)
        )
        return [len(vllm._kept), pieces]

    assert engine._stepper.do(known) == [0, 0]


def test_closing_ends_a_call_under_way(backend, teacher_folder):
    if backend == "vllm":
        pytest.skip(
            "one process holds one vLLM engine; test_stepping closes one under way"
        )
    own = open_teacher(
        teacher_folder, engine_config(backend), max_model_len=MAX_MODEL_LEN
    )
    if backend == "fake":
        own.close()
        return
    begun = own.generate(probes(oracle.prompts(15, [100])[0]))
    next(begun)
    closer = threading.Thread(target=own.close)
    closer.start()
    closer.join(TIMEOUT_S)
    with pytest.raises(TopdError, match="closed"):
        next(begun)
    with pytest.raises(TopdError, match="closed"):
        own.hidden_states(oracle.prompts(16, [5]))


def test_a_generation_hands_over_the_states_that_predicted_its_tokens(engine):
    """The states of a second pass, without it; with and without a cached prefix."""
    sequence = oracle.prompts(12, [120])[0]
    asked = probes(sequence, every=20, states=True)
    cold = {one.request_id: one for one in engine.generate(asked)}
    engine.hidden_states([sequence])
    mixed = [*asked, request(sequence[:50], request_id="plain")]
    for one in engine.generate(mixed):
        if one.request_id == "plain":
            assert one.states_ND is None
            continue
        end = int(one.request_id)
        read = np.concatenate([sequence[:end], one.token_ids_N[:-1]])
        (whole_LD,) = engine.hidden_states([read])
        assert one.states_ND is not None
        assert one.states_ND.dtype == np.float32
        np.testing.assert_allclose(
            one.states_ND, whole_LD[end - 1 :], rtol=1e-4, atol=1e-5
        )
        before = cold[one.request_id]
        assert before.token_ids_N.tolist() == one.token_ids_N.tolist()
        assert before.states_ND is not None
        np.testing.assert_allclose(
            before.states_ND, one.states_ND, rtol=1e-4, atol=1e-5
        )
