"""Every generating back end answers as transformers would."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.contract import oracle
from tests.contract.backends import DECODERS, THIRD_PARTY, open_decoder
from tests.contract.oracle import MAX_MODEL_LEN, request, run
from tests.tiny import EOS_ID, VOCAB
from topd_ray.engines.protocols import GenerationEngine
from topd_ray.errors import TopdError, UserError
from topd_ray.messages import PAD, Ints

pytestmark = THIRD_PARTY

LENGTHS = [1, 2, 5, 31, 32, 33, 64, 70, 100, 7, 7, 13]
DRAWS = 2000


@pytest.fixture(scope="module", params=DECODERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(kind: str, student_folder: Path) -> Iterator[GenerationEngine]:
    opened = open_decoder(kind, student_folder, max_model_len=MAX_MODEL_LEN)
    yield opened
    opened.close()
    opened.close()


@pytest.fixture(scope="module")
def model(student_folder: Path) -> torch.nn.Module:
    return oracle.load(student_folder)


@pytest.fixture(scope="module")
def ragged() -> list[Ints]:
    return oracle.prompts(0, LENGTHS)


@pytest.fixture(scope="module")
def expected(model: torch.nn.Module, ragged: list[Ints]) -> list[list[int]]:
    found = [oracle.greedy(model, prompt, 32) for prompt in ragged]
    assert {EOS_ID in answer for answer in found} == {
        True,
        False,
    }, "the oracle covers both ends"
    return found


def test_greedy_equals_transformers_token_for_token(engine, ragged, expected):
    assert oracle.tokens(engine, ragged) == expected


def test_eos_belongs_to_the_response_and_is_the_reason_to_stop(
    engine, ragged, expected
):
    requests = [request(prompt, request_id=f"r{i}") for i, prompt in enumerate(ragged)]
    for generation, answer in zip(run(engine, requests), expected, strict=True):
        assert generation.finish_reason == (
            "stop" if answer[-1] == EOS_ID else "length"
        )
        assert EOS_ID not in generation.token_ids_N[:-1]
        assert generation.token_ids_N.dtype == np.int32


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_no_response_is_longer_than_max_tokens(engine, ragged, max_tokens):
    answers = oracle.tokens(engine, ragged, max_tokens=max_tokens, temperature=1.0)
    assert max(map(len, answers)) == max_tokens


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 0.7, "top_k": 3},
    ],
)
def test_log_probabilities_are_the_models_before_temperature_top_k_and_top_p(
    engine, model, ragged, sampling
):
    requests = [
        request(p, request_id=f"r{i}", seed=i, num_top=8, **sampling)
        for i, p in enumerate(ragged)
    ]
    for sent, got in zip(requests, run(engine, requests), strict=True):
        logp_NV = oracle.response_logp(model, sent.prompt_ids, got.token_ids_N)
        rows = np.arange(len(got.token_ids_N))
        np.testing.assert_allclose(
            got.logp_N, logp_NV[rows, got.token_ids_N], atol=1e-4
        )
        np.testing.assert_allclose(
            got.top_logp_NM, -np.sort(-logp_NV)[:, :8], atol=1e-4
        )
        named_NM = np.take_along_axis(logp_NV, got.top_ids_NM.astype(np.int64), axis=1)
        np.testing.assert_allclose(got.top_logp_NM, named_NM, atol=1e-4)
        assert got.top_ids_NM.shape == (len(rows), 8)
        assert (np.diff(got.top_logp_NM, axis=1) <= 0).all(), "best first"
        assert all(len(set(ids)) == 8 for ids in got.top_ids_NM.tolist())


def test_more_likely_ids_than_the_vocabulary_has_are_padding(engine, ragged):
    got = run(engine, [request(ragged[0], num_top=len(VOCAB) + 3)])[0]
    assert sorted(got.top_ids_NM[0, :-3].tolist()) == list(range(len(VOCAB)))
    assert (got.top_ids_NM[:, -3:] == PAD).all()
    assert np.isneginf(got.top_logp_NM[:, -3:]).all()


def test_a_request_for_no_likely_ids_gets_no_log_probabilities(engine, ragged):
    got = run(engine, [request(ragged[0])])[0]
    assert got.logp_N.shape == (0,)
    assert got.top_ids_NM.shape == got.top_logp_NM.shape == (len(got.token_ids_N), 0)


def test_requests_that_want_different_numbers_of_likely_ids_share_a_batch(
    engine, ragged
):
    requests = [
        request(p, request_id=f"r{i}", num_top=i % 4) for i, p in enumerate(ragged)
    ]
    for sent, got in zip(requests, run(engine, requests), strict=True):
        assert got.top_ids_NM.shape == (len(got.token_ids_N), sent.num_top)
        if sent.num_top:
            assert got.top_ids_NM[:, 0].tolist() == got.token_ids_N.tolist()


def test_a_seed_gives_the_same_tokens_in_any_company_and_again(engine, ragged):
    kinds = [
        {},
        {"top_p": 0.9},
        {"top_k": 5},
        {"top_k": 9, "top_p": 0.8},
        {"temperature": 0.0},
    ]

    def sample(prompt, index):
        sampling = {"temperature": 1.0} | kinds[index % len(kinds)]
        return request(
            prompt, request_id=f"r{index}", seed=index, max_tokens=40, **sampling
        )

    together = [sample(p, i) for i, p in enumerate(ragged)]
    first = [g.token_ids_N.tolist() for g in run(engine, together)]
    again = [g.token_ids_N.tolist() for g in run(engine, together)]
    backwards = [g.token_ids_N.tolist() for g in run(engine, together[::-1])][::-1]
    alone = [run(engine, [single])[0].token_ids_N.tolist() for single in together]
    assert first == again == backwards == alone


def test_more_than_the_cache_or_one_step_can_hold_changes_no_answer(engine):
    requests = [
        request(p, request_id=f"r{i}", temperature=1.0, seed=i, num_top=1)
        for i, p in enumerate(oracle.prompts(6, [150] * 70))
    ]
    together = run(engine, requests)
    for sent, got in list(zip(requests, together, strict=True))[::9]:
        assert got.token_ids_N.tolist() == run(engine, [sent])[0].token_ids_N.tolist()


def test_prompts_that_begin_alike_change_no_answer(engine, model):
    long = oracle.prompts(7, [90])[0]
    prompts = [
        long[:40],
        long,
        long[:70],
        long,
        long[:41],
        np.append(long[:40], long[0]),
    ]
    assert oracle.tokens(engine, prompts) == [
        oracle.greedy(model, p, 32) for p in prompts
    ]


def test_responses_that_outgrow_their_prompts_many_times_change_no_answer(
    engine, model
):
    prompts = oracle.prompts(8, [1, 2, 1, 3])
    expected = [oracle.greedy(model, prompt, 100) for prompt in prompts]
    assert max(map(len, expected)) > 60, "the oracle decodes far"
    assert oracle.tokens(engine, prompts, max_tokens=100) == expected


def test_different_seeds_give_different_tokens(engine, ragged):
    requests = [
        request(ragged[3], request_id=f"r{seed}", temperature=1.0, seed=seed)
        for seed in range(8)
    ]
    assert len({tuple(g.token_ids_N) for g in run(engine, requests)}) > 4


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [
        (1.0, 1.0, 0),
        (0.8, 0.7, 0),
        (1.3, 1.0, 6),
        (1.0, 0.8, 9),
        (1.0, 1.0, len(VOCAB)),
    ],
)
def test_sampled_frequencies_follow_the_distribution(
    engine, model, ragged, temperature, top_p, top_k
):
    p_V = np.exp(oracle.all_logp(model, ragged[3])[-1] / temperature)
    best_first = np.argsort(-p_V)[: top_k or None]
    p_V /= p_V[best_first].sum()
    nucleus = best_first[: int(np.searchsorted(p_V[best_first].cumsum(), top_p)) + 1]
    requests = [
        request(
            ragged[3],
            request_id=f"r{i}",
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_tokens=1,
            seed=i,
        )
        for i in range(DRAWS)
    ]
    drawn = np.bincount(
        [g.token_ids_N[0] for g in run(engine, requests)], minlength=len(VOCAB)
    )
    assert drawn.sum() == drawn[nucleus].sum(), "nothing outside the nucleus"
    chi_square, freedom = _chi_square(
        drawn[nucleus], DRAWS * p_V[nucleus] / p_V[nucleus].sum()
    )
    assert chi_square < freedom + 6 * math.sqrt(2 * freedom)  # six standard deviations


def test_an_abandoned_generation_leaves_nothing_behind(engine, ragged, expected):
    requests = [
        request(p, request_id=f"old{i}", temperature=1.0, max_tokens=60, seed=i)
        for i, p in enumerate(ragged * 8)
    ]
    abandoned = engine.generate(requests)
    next(abandoned)
    del abandoned
    assert oracle.tokens(engine, ragged) == expected
    never_started = engine.generate(requests)
    del never_started
    assert oracle.tokens(engine, ragged) == expected


def test_a_later_call_ends_an_earlier_one_except_a_teachers(
    engine, kind, ragged, expected
):
    requests = [
        request(p, request_id=f"old{i}", temperature=1.0, max_tokens=60, seed=i)
        for i, p in enumerate(ragged * 8)
    ]
    lingering = engine.generate(requests)
    first = next(lingering)
    assert oracle.tokens(engine, ragged) == expected
    if "teacher" not in kind:
        with pytest.raises(TopdError, match="ended"):
            next(lingering)
        return
    found = {first.request_id, *(g.request_id for g in lingering)}
    assert found == {r.request_id for r in requests}


def test_finished_generations_come_in_the_same_order_again(engine, ragged):
    requests = [
        request(p, request_id=f"r{i}", temperature=1.0, seed=i)
        for i, p in enumerate(ragged * 8)
    ]
    orders = [[g.request_id for g in engine.generate(requests)] for _ in range(2)]
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(r.request_id for r in requests)


def test_an_empty_prompt_is_refused(engine):
    with pytest.raises(UserError, match="request bad: the prompt is empty"):
        engine.generate([request(np.empty(0, np.int32), request_id="bad")])


def test_a_request_that_could_outgrow_the_context_is_refused_by_id(engine, ragged):
    prompt = ragged[2]
    with pytest.raises(
        UserError, match=rf"request long: .* = {MAX_MODEL_LEN + 1} exceeds"
    ):
        engine.generate(
            [
                request(
                    prompt,
                    request_id="long",
                    max_tokens=MAX_MODEL_LEN + 1 - len(prompt),
                )
            ]
        )


def test_a_request_may_fill_the_context_exactly(engine, model):
    prompt = oracle.prompts(5, [MAX_MODEL_LEN - 3])[0]
    assert oracle.tokens(engine, [prompt], max_tokens=3) == [
        oracle.greedy(model, prompt, 3)
    ]


def test_no_requests_give_no_generations(engine):
    assert list(engine.generate([])) == []


def _chi_square(drawn: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; rare outcomes share one bin."""
    common = expected >= 5
    observed = np.append(drawn[common], drawn[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    kept = wanted > 0
    statistic = ((observed[kept] - wanted[kept]) ** 2 / wanted[kept]).sum()
    return float(statistic), int(kept.sum()) - 1
