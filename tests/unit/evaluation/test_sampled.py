from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

import topd_ray
from tests.make import prompt
from topd_ray.engines.protocols import Generation, GenerationRequest
from topd_ray.evaluation import sampled_accuracy

STUDENT = Path(topd_ray.__file__).parent / "toy" / "world" / "student"
PROBLEMS = [prompt(position, answer="7") for position in range(4)]
RIGHT = {"p1/0", "p1/2", "p3/1"}


class Engine:
    """Answers 7 to the requests in RIGHT and 3 to the others, last request first."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(STUDENT)
        self.asked = list[GenerationRequest]()

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        self.asked += requests
        for request in reversed(requests):
            answer = 7 if request.request_id in RIGHT else 3
            ids = self.tokenizer(f"so it is \\boxed{{ {answer} }}").input_ids
            yield Generation(
                request_id=request.request_id,
                token_ids_N=np.array(ids, np.int32),
                logp_N=np.zeros(0, np.float32),
                top_ids_NM=np.zeros((0, 0), np.int32),
                top_logp_NM=np.zeros((0, 0), np.float32),
                finish_reason="stop",
            )


def test_a_problem_is_passed_by_any_sample_and_the_average_is_over_all() -> None:
    engine = Engine()
    found = sampled_accuracy(
        engine, PROBLEMS, folder=STUDENT, max_tokens=9, samples=3, seed=0
    )
    assert (found.num_problems, found.samples) == (4, 3)
    assert found.avg == pytest.approx(3 / 12)
    assert found.pass_any == pytest.approx(2 / 4)
    assert {request.temperature for request in engine.asked} == {1.0}
    assert {request.max_tokens for request in engine.asked} == {9}
    assert len({request.seed for request in engine.asked}) == 12


def test_another_seed_draws_other_samples() -> None:
    seeds = []
    for seed in (0, 0, 1):
        engine = Engine()
        sampled_accuracy(
            engine, PROBLEMS, folder=STUDENT, max_tokens=9, samples=2, seed=seed
        )
        seeds.append([request.seed for request in engine.asked])
    assert seeds[0] == seeds[1]
    assert not set(seeds[0]) & set(seeds[2])
