"""Sums of two number formats, and the weights of a layer."""

import pytest
import torch

from topd_ray.engines.tensors import add_blocks, by_layer

BLOCK = 2**18


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [0, 3, BLOCK + 1])
def test_a_sum_of_blocks_is_the_sum_of_the_whole(length: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    total = torch.randn(length, generator=generator)
    part = torch.randn(length, generator=generator).to(dtype)
    want = total + part.float()
    add_blocks(total, part)
    assert torch.equal(total, want)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises((ValueError, RuntimeError)):
        add_blocks(torch.zeros(BLOCK + 1), torch.zeros(BLOCK, dtype=torch.bfloat16))


def test_a_layer_is_gathered_at_once_and_all_else_for_itself() -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.experts.7.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.10.self_attn.q_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]
    weights = [(name, torch.zeros(1)) for name in names]
    layers = [[name for name, _ in layer] for layer in by_layer(weights)]
    assert layers == [names[:1], names[1:3], *([name] for name in names[3:])]
