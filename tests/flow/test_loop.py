"""The loop closed: what DeepSpeed trained is what vLLM decodes with, token for
token.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.contract import oracle
from tests.contract.backends import THIRD_PARTY, engine_config
from tests.runs import Run
from topd_ray.config import RolloutConfig
from topd_ray.engines.open import open_generation
from topd_ray.rollout import RolloutActor
from topd_ray.weights.buckets import in_buckets

pytestmark = [pytest.mark.engines, THIRD_PARTY]

PROMPTS = oracle.prompts(7, [3, 17, 40, 65])


def test_after_training_the_rollout_engine_decodes_as_transformers_does(
    whole: Run, student_folder: Path
) -> None:
    trained = load_file(whole.path / "export" / "model.safetensors")
    weights = [(name, tensor.numpy()) for name, tensor in trained.items()]
    actor = RolloutActor(
        RolloutConfig(),
        lambda: open_generation(
            student_folder, engine_config("vllm"), max_model_len=128
        ),
        run_seed=0,
    )
    try:
        before = oracle.tokens(actor.engine, PROMPTS)
        actor.update(1, list(in_buckets(weights, policy_version=1, max_bytes=10_000)))
        after = oracle.tokens(actor.engine, PROMPTS)
    finally:
        actor.engine.close()
    model = oracle.load(whole.path / "export")
    assert after == [oracle.greedy(model, prompt, 32) for prompt in PROMPTS]
    assert after != before  # training moved the weights far enough to be seen


def test_training_moved_every_weight(whole: Run, student_folder: Path) -> None:
    before = load_file(student_folder / "model.safetensors")
    after = load_file(whole.path / "export" / "model.safetensors")
    assert before.keys() == after.keys()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == []
