"""A rewrite keeps the rollout's name and the student's prompt; the rest is the
teacher's.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import make
from tests.tiny import EOS_ID, VOCAB
from topd_ray.config import EngineConfig, RewriteConfig
from topd_ray.contexts import ChatTemplate, Forms
from topd_ray.engines.open import open_generation
from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.messages import Ints, Prompt, Rollout
from topd_ray.rewrite import RewriteActor

MAX_PROMPT, MAX_RESPONSE = 24, 12
FORMS = Forms(
    reference="{problem} w1 {reference}",
    refine="{problem} w2 {attempt}",
    refine_reference="{problem} w1 {reference} w2 {attempt}",
)
HEAD, TAIL = ["<|im_start|>", "user"], ["<|im_end|>", "<|im_start|>", "assistant"]


def ids(*words: str) -> Ints:
    return np.array([VOCAB.index(word) for word in words], np.int32)


def prompt(index: int) -> Prompt:
    return make.prompt(index, problem=f"{index}", reference="w9 w8")


def attempt(name: str, *words: str, **fields: Any) -> Rollout:
    response_N = ids(*words)
    return make.rollout(name, length=len(words), response_ids_N=response_N, **fields)


PROMPTS = {one.prompt_id: one for one in map(prompt, range(3))}
ATTEMPTS = [
    attempt("00.0", "w5", "4", "<|im_end|>", policy_version=3),
    attempt("00.1", "w6", finish_reason="length"),
    attempt("01.0", *["w7"] * 40, prompt_id="p1", position=1),
]


class Recording:
    """Passes requests on to an engine, and keeps them."""

    def __init__(self, engine: GenerationEngine) -> None:
        self.asked: list[GenerationRequest] = []
        self.engine = engine

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        self.asked += requests
        return self.engine.generate(requests)

    def load_weights(self, weights: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.engine.close()


OpenActor = Callable[..., tuple[RewriteActor, Recording]]


@pytest.fixture
def open_actor(teacher_folder: Path) -> OpenActor:
    def opened(
        backend: Any = "fake", context: Any = "refine", run_seed: int = 7, **fields: Any
    ) -> tuple[RewriteActor, Recording]:
        engine = EngineConfig(backend=backend, dtype="float32")
        recording = Recording(
            open_generation(
                teacher_folder, engine, max_model_len=MAX_PROMPT + MAX_RESPONSE
            )
        )
        actor = RewriteActor(
            RewriteConfig(**fields),
            context=context,
            forms=FORMS,
            chat=ChatTemplate(teacher_folder),
            engine=recording,
            max_prompt_tokens=MAX_PROMPT,
            max_reference_tokens=1,
            max_response_tokens=MAX_RESPONSE,
            run_seed=run_seed,
        )
        return actor, recording

    return opened


@pytest.mark.parametrize("backend", ["fake", "hf"])
def test_a_rewrite_keeps_name_version_and_the_students_prompt(
    backend: str, open_actor: OpenActor
) -> None:
    actor, recording = open_actor(backend)
    rewrites = actor.rewrite(ATTEMPTS, PROMPTS)
    answers = {
        one.request_id: one for one in recording.engine.generate(recording.asked)
    }
    for before, after in zip(ATTEMPTS, rewrites, strict=True):
        for field in (
            "rollout_id",
            "prompt_id",
            "position",
            "policy_version",
        ):
            assert getattr(after, field) == getattr(before, field)
        answer = answers[before.rollout_id]
        assert after.prompt_ids_P is before.prompt_ids_P
        assert after.response_ids_N.tolist() == answer.token_ids_N.tolist()
        assert after.finish_reason == answer.finish_reason
        assert (after.finish_reason == "stop") == (after.response_ids_N[-1] == EOS_ID)
        assert 1 <= len(after.response_ids_N) <= MAX_RESPONSE
        assert after.logp_O.shape == (0,)
        assert after.top_ids_OM.shape == after.top_logp_OM.shape == (0, 0)
        assert after.logp_O.dtype == after.top_logp_OM.dtype == np.float32
        assert after.top_ids_OM.dtype == np.int32


def test_a_rewrite_is_scored_under_the_refinement_prompt_it_was_written_under(
    open_actor: OpenActor,
) -> None:
    actor, recording = open_actor()
    rewrites = actor.rewrite(ATTEMPTS, PROMPTS)
    asked = {one.request_id: one.prompt_ids.tolist() for one in recording.asked}
    assert asked["00.0"] == ids(*HEAD, "0", "w2", "w5", "4", *TAIL).tolist(), (
        "EOS is no text"
    )
    assert asked["00.1"] == ids(*HEAD, "0", "w2", "w6", *TAIL).tolist()
    room = MAX_PROMPT - len([*HEAD, "1", "w2", *TAIL])
    assert asked["01.0"] == ids(*HEAD, "1", "w2", *["w7"] * room, *TAIL).tolist()
    assert [one.teacher_prompt_ids_P.tolist() for one in rewrites] == list(
        asked.values()
    )


def test_with_a_reference_both_solutions_are_in_the_prompt(
    open_actor: OpenActor,
) -> None:
    actor, recording = open_actor(context="refine_reference")
    actor.rewrite(ATTEMPTS[:1], PROMPTS)
    expected = ids(
        *HEAD, "0", "w1", "w9", "w2", "w5", "4", *TAIL
    )  # w8: max_reference_tokens=1
    assert recording.asked[0].prompt_ids.tolist() == expected.tolist()


def test_sampling_is_the_configs_and_asks_for_no_logp(open_actor: OpenActor) -> None:
    actor, recording = open_actor(temperature=0.3, top_p=0.8, top_k=5)
    actor.rewrite(ATTEMPTS, PROMPTS)
    assert {(r.temperature, r.top_p, r.top_k, r.num_top) for r in recording.asked} == {
        (0.3, 0.8, 5, 0)
    }
    assert {r.max_tokens for r in recording.asked} == {MAX_RESPONSE}


@pytest.mark.parametrize("backend", ["fake", "hf"])
def test_a_rewrite_done_again_in_other_company_is_the_same(
    backend: str, open_actor: OpenActor
) -> None:
    actor, _ = open_actor(backend)
    together = [one.response_ids_N.tolist() for one in actor.rewrite(ATTEMPTS, PROMPTS)]
    alone = [
        actor.rewrite([one], PROMPTS)[0].response_ids_N.tolist()
        for one in ATTEMPTS[::-1]
    ]
    assert together == alone[::-1]


def test_seeds_differ_between_rollouts_and_between_runs(open_actor: OpenActor) -> None:
    seeds = []
    for run_seed in (7, 8):
        actor, recording = open_actor(run_seed=run_seed)
        actor.rewrite(ATTEMPTS, PROMPTS)
        seeds += [request.seed for request in recording.asked]
    assert len(set(seeds)) == 2 * len(ATTEMPTS)


def test_a_response_is_decoded_for_grading_without_its_end(
    open_actor: OpenActor,
) -> None:
    actor, _ = open_actor()
    assert actor.decode(ids("w5", "4", "<|im_end|>")) == "w5 4"
