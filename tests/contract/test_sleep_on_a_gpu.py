"""What an engine that sleeps leaves to others: only a GPU can show it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.contract import oracle
from tests.contract.backends import THIRD_PARTY
from tests.contract.oracle import MAX_MODEL_LEN
from topd_ray.config.base import EngineConfig
from topd_ray.engines.open import open_generation, open_teacher
from topd_ray.engines.protocols import GenerationEngine

pytestmark = [
    THIRD_PARTY,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

CACHE_GIB = 2.0


@pytest.fixture(scope="module", params=[open_generation, open_teacher])
def engine(
    request: pytest.FixtureRequest, student_folder: Path
) -> Iterator[GenerationEngine]:
    """The same engine as in a run whose roles take turns: with CUDA graphs."""
    config = EngineConfig(backend="vllm", dtype="bfloat16", kv_cache_gib=CACHE_GIB)
    opened = request.param(
        student_folder, config, max_model_len=MAX_MODEL_LEN, sleeps=True
    )
    yield opened
    opened.close()


def test_its_cache_is_free_while_it_sleeps_and_it_answers_as_before(engine):
    prompts = oracle.prompts(1, [3, 40, 65])
    before = oracle.tokens(engine, prompts)
    for _ in range(2):  # the second time with memory that was given back once
        free_awake, _ = torch.cuda.mem_get_info()
        engine.sleep()
        free_asleep, _ = torch.cuda.mem_get_info()
        assert free_asleep - free_awake > 0.9 * CACHE_GIB * 2**30
        engine.wake("weights")
        free_with_weights, _ = torch.cuda.mem_get_info()
        assert free_with_weights - free_awake > 0.9 * CACHE_GIB * 2**30
        engine.wake()
        assert oracle.tokens(engine, prompts) == before
