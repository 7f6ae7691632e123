"""Sums of two number formats."""

import pytest
import torch

from topd_ray.engines.tensors import add_blocks

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
