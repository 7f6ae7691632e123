"""The harness's view of an engine: a seed a sample, stops, limits and the engine's
length.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from tests.tiny import VOCAB
from topd_ray.contexts import ChatTemplate
from topd_ray.engines.protocols import Generation, GenerationRequest
from topd_ray.errors import UserError
from topd_ray.evaluation.harness.model import EngineModel, LastingEngine, Response

CONTEXT = 64


class Parrot:
    """Says `w1 5 w2 …` as long as it may, and remembers what it was asked; last request
    first.
    """

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []
        self.closed = False

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        self.asked += requests
        for request in reversed(requests):
            words = ["w1", "5", "w2", "w3", "<|im_end|>"][: request.max_tokens]
            yield Generation(
                request_id=request.request_id,
                token_ids_N=np.array([VOCAB.index(word) for word in words], np.int32),
                logp_N=np.empty(0, np.float32),
                top_ids_NM=np.empty((len(words), 0), np.int32),
                top_logp_NM=np.empty((len(words), 0), np.float32),
                finish_reason="stop" if words[-1] == "<|im_end|>" else "length",
            )

    def load_weights(self, weights: Any) -> None:
        raise AssertionError(f"an evaluation changes no weights: {weights}")

    def close(self) -> None:
        self.closed = True


def instances(*texts: str, repeats: int = 1, **options: Any) -> list[Instance]:
    options = {
        "do_sample": True,
        "temperature": 0.6,
        "until": [],
        "max_gen_toks": 8,
    } | options
    found = [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(text, options),
            idx=0,
            metadata=("task", doc_id, repeats),
        )
        for doc_id, text in enumerate(texts)
    ]
    return [one for one in found for _ in range(repeats)]


def model(folder: Path, parrot: Parrot, **options: Any) -> EngineModel:
    options = {"seed": 0, "may_shorten": False} | options
    if "chat" not in options:
        options["chat"] = ChatTemplate(folder)
    return EngineModel(
        LastingEngine(lambda _: parrot, context=CONTEXT), folder, **options
    )


def test_samples_of_a_problem_have_seeds_of_their_own_that_the_run_s_seed_fixes(
    student_folder: Path,
) -> None:
    seeds = []
    for seed in (0, 0, 1):
        parrot = Parrot()
        model(student_folder, parrot, seed=seed).generate_until(
            instances("w1", "w1", repeats=3), disable_tqdm=True
        )
        seeds.append([request.seed for request in parrot.asked])
        assert {(r.temperature, r.top_p) for r in parrot.asked} == {(0.6, 1.0)}
    assert len(set(seeds[0])) == 6
    assert seeds[0] == seeds[1]
    assert not set(seeds[0]) & set(seeds[2])


def test_strings_come_in_the_order_asked_and_what_they_cannot_carry_is_kept(
    student_folder: Path,
) -> None:
    asked = model(student_folder, Parrot())
    texts = asked.generate_until(
        instances("w7", repeats=2) + instances("w8", "w9", max_gen_toks=2)[1:],
        disable_tqdm=True,
    )
    assert texts == ["w1 5 w2 w3", "w1 5 w2 w3", "w1 5"]
    whole, cut = asked.responses[0][1], asked.responses[1][0]
    assert (whole.num_tokens, whole.truncated, whole.prompt) == (5, False, "w7")
    assert (cut.num_tokens, cut.truncated, cut.max_tokens) == (2, True, 2)


def test_a_stop_string_ends_the_text_and_is_no_truncation(student_folder: Path) -> None:
    asked = model(student_folder, Parrot())
    (text,) = asked.generate_until(
        instances("w7", until=["w2", "5"], max_gen_toks=4), disable_tqdm=True
    )
    assert text == "w1 "
    response: Response = asked.responses[0][0]
    assert not response.truncated


def test_without_sampling_it_is_greedy(student_folder: Path) -> None:
    parrot = Parrot()
    asked = instances("w7", do_sample=False, temperature=0.0)
    model(student_folder, parrot).generate_until(asked, disable_tqdm=True)
    assert [request.temperature for request in parrot.asked] == [0.0]


def test_a_limit_beyond_the_context_is_refused_or_lowered(student_folder: Path) -> None:
    long = instances("w1 " * 60, max_gen_toks=8)
    with pytest.raises(UserError, match=r"task/0/0: --max-tokens 8 .* lower it to 4"):
        model(student_folder, Parrot()).generate_until(long, disable_tqdm=True)
    shortened = model(student_folder, Parrot(), may_shorten=True)
    shortened.generate_until(long, disable_tqdm=True)
    assert shortened.responses[0][0].max_tokens == 4
    with pytest.raises(UserError, match="64 tokens fill the model's context of 64"):
        shortened.generate_until(instances("w1 " * 64), disable_tqdm=True)


def test_the_chat_template_is_rendered_with_thinking_off(
    student_folder: Path, tmp_path: Path
) -> None:
    for path in student_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %} {{ enable_thinking }}"
    )
    rendered = model(tmp_path, Parrot()).apply_chat_template(
        [{"role": "user", "content": "w1"}]
    )
    assert rendered == "w1 False"
    thinking = ChatTemplate(tmp_path, variables={"enable_thinking": True})
    rendered = model(tmp_path, Parrot(), chat=thinking).apply_chat_template(
        [{"role": "user", "content": "w1"}]
    )
    assert rendered == "w1 True"


def test_a_problem_whose_text_would_become_control_tokens_is_refused(
    student_folder: Path,
) -> None:
    asked = [{"role": "user", "content": "w1 <|im_end|> w2"}]
    with pytest.raises(UserError, match=r"problem 'w1 .*'<\|im_end\|>' in its text"):
        model(student_folder, Parrot()).apply_chat_template(asked)


def test_a_model_without_a_chat_template_cannot_be_asked(
    student_folder: Path, tmp_path: Path
) -> None:
    for path in student_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no chat template"):
        model(tmp_path, Parrot())
    model(tmp_path, Parrot(), chat=None)


def test_one_engine_serves_all_tasks_until_a_longer_context_is_needed() -> None:
    opened: list[tuple[int, Parrot]] = []

    def open_engine(length: int) -> Parrot:
        opened.append((length, Parrot()))
        return opened[-1][1]

    def ask(engine: LastingEngine, length: int) -> None:
        request = GenerationRequest(
            request_id="r",
            prompt_ids=np.arange(length - 5, dtype=np.int32),
            max_tokens=5,
            temperature=0,
            top_p=1,
            seed=0,
            num_top=0,
        )
        list(engine.generate([request]))

    engine = LastingEngine(open_engine, context=3000)
    for length in (900, 1024, 1025, 3000, 20):
        ask(engine, length)
    assert [length for length, _ in opened] == [1024, 2048, 3000]
    assert [parrot.closed for _, parrot in opened] == [True, True, False]
    engine.close()
    engine.close()
    assert opened[-1][1].closed
