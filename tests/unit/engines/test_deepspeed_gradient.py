"""The sum of squares of gradients; DeepSpeed itself runs in the contract tests."""

import math

import pytest
import torch

from topd_ray.engines.deepspeed_gradient import sum_of_squares

BLOCK = 2**18


def test_the_sum_of_squares_is_that_of_float64_across_the_ends_of_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, BLOCK + 1), (3,), (BLOCK,), (0,)]
    gradients = [1e3 * torch.randn(shape, generator=generator) for shape in shapes]
    whole = torch.cat([gradient.flatten() for gradient in gradients]).double()
    assert sum_of_squares(gradients).item() == pytest.approx(
        float(whole.square().sum()), rel=1e-12
    )


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, BLOCK])
def test_one_value_that_is_not_finite_shows(value: float, place: int) -> None:
    gradient = torch.ones(BLOCK + 1)
    gradient[place] = value
    assert not math.isfinite(sum_of_squares([torch.ones(2), gradient]).item())
