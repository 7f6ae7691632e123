"""The sum of `topd check` for a learner's micro-batch, against the tensors of one.

The tensors are fake: they have the sizes of those on a GPU, and no memory.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.live_tensors import Peak
from tests.unit.learner.layouts import make_layout
from topd_ray.config import Config, parse_config
from topd_ray.inputs.estimates import GIB, ModelSizes, learner_parts
from topd_ray.learner import attention, fused, model
from topd_ray.learner.divergence import TokenLoss

ROWS, WIDTH, INNER = 151_936, 2560, 9728
"""Of Qwen3-4B."""
LAYERS = 4
"""Instead of 36: each further one keeps as much as these do."""
TEACHER_WIDTH = 2048
TRAINED = 2000
"""Positions of the loss: more than a chunk of it."""


class FlexSizes(torch.autograd.Function):
    """Attention that makes and keeps what flex attention does, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, key, value, *_ = inputs
        out = torch.empty_like(query)
        lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
        query, key, value, _, lse = ctx.saved_tensors
        delta = torch.empty_like(lse)
        slopes = [torch.empty_like(x) for x in (query, key, value)]
        del delta
        return (*slopes, None, None, None)


def use_sizes_of_a_gpu(monkeypatch: pytest.MonkeyPatch, num_tokens: int) -> None:
    """torch without CUDA cannot run backward on fake GPU tensors: CPU ones stand in."""
    tiles = fused.tiles
    gpu = torch.device("cuda")
    monkeypatch.setattr(attention, "PackedFlash", FlexSizes)
    monkeypatch.setattr(model, "tiles", lambda num_rows, _: tiles(num_rows, gpu))
    monkeypatch.setattr(fused, "_PRODUCT_ROWS", {})
    # Fake lengths have no values, which a layout needs.
    layout = make_layout((num_tokens, 0, 0))
    monkeypatch.setattr(model, "Layout", lambda *_: layout)


def measured_gib(num_tokens: int) -> float:
    """Return the peak of forward and backward pass, without weights and gradients."""
    config = Qwen3Config(
        vocab_size=ROWS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        attn_implementation=attention.PACKED,
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        student = Qwen3ForCausalLM._from_config(config, dtype=torch.bfloat16).train()
        student.gradient_checkpointing_enable({"use_reentrant": False})
        distilled = model.DistillationModel(
            student,
            num_ids=151_669,
            signal="hidden",
            teacher_head_VE=torch.empty(ROWS, TEACHER_WIDTH, dtype=torch.bfloat16),
            token_loss=TokenLoss(),
            lambda_traj=0.1,
        )
        for weight in distilled.parameters():  # as DeepSpeed takes each gradient away
            weight.register_post_accumulate_grad_hook(_dropped)
        inputs = _inputs(num_tokens)
        with Peak(*distilled.parameters(), *distilled.buffers(), *inputs) as seen:
            total = distilled(*inputs)[0]
            total.backward(torch.tensor(1.0, dtype=torch.float64))
    return seen.peak / GIB


def _dropped(weight: Tensor) -> None:
    weight.grad = None


def _inputs(num_tokens: int) -> list[Tensor]:
    ids = torch.long
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
        ((num_tokens,), ids),
        ((1,), ids),
        ((1,), ids),
        ((1,), ids),
        ((TRAINED,), ids),
        ((TRAINED,), ids),
        ((TRAINED,), torch.float32),
        ((TRAINED,), torch.float32),
        ((0,), torch.bool),
        ((0,), torch.bool),
        ((0,), ids),
        ((0, 1), ids),
        ((0, 1), torch.float32),
        ((TRAINED, TEACHER_WIDTH), torch.bfloat16),
    ]
    return [torch.empty(shape, dtype=dtype) for shape, dtype in shapes]


def config_of(num_tokens: int) -> Config:
    values = {
        "prompts": {"path": "p", "max_tokens": 800, "per_step": 1},
        "rollout": {
            "samples_per_prompt": 1,
            "max_response_tokens": num_tokens - 800,
        },
        "windows": {"token_budget": num_tokens},
        "teacher": {"model": "t"},
        "learner": {"model": "s", "gpus": 1, "gradient_checkpointing": True},
    }
    return parse_config(values, source="test")


@pytest.mark.parametrize("num_tokens", [9_000, 16_384])
def test_the_sum_is_within_a_tenth_of_what_a_micro_batch_of_qwen3_4b_takes(
    num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_sizes_of_a_gpu(monkeypatch, num_tokens)
    student = ModelSizes(
        parameters=0.0, rows=ROWS, width=WIDTH, inner=INNER, layers=LAYERS
    )
    parts = learner_parts(config_of(num_tokens), student, ModelSizes(parameters=0.0))
    assert sum(parts.values()) == pytest.approx(measured_gib(num_tokens), rel=0.1)
