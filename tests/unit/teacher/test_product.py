"""Products of numbers that bfloat16 holds, and of others."""

import threading

import pytest
import torch

from topd_ray.teacher.product import head_product

SETTING = torch.backends.mkldnn.matmul


def numbers(*shape: int, seed: int, rounded: bool) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.bfloat16().float() if rounded else drawn


@pytest.mark.parametrize("rounded_states", [False, True])
@pytest.mark.parametrize("rounded_head", [False, True])
def test_the_product_is_that_of_float64_up_to_float32(
    rounded_states: bool, rounded_head: bool
) -> None:
    states_CD = numbers(64, 512, seed=0, rounded=rounded_states)
    head_RD = numbers(1000, 512, seed=1, rounded=rounded_head)
    got_CR = head_product(states_CD, head_RD, head_is_bfloat16=rounded_head)
    want_CR = states_CD.double() @ head_RD.double().T
    # sums of 512 products of size 1; rounded inputs alone would be off by 0.1
    assert (got_CR - want_CR).abs().max() < 512 * 2**-23
    assert got_CR.dtype == torch.float32


def test_the_setting_is_as_before_whatever_calls_overlap() -> None:
    before = SETTING.fp32_precision
    states_CD = numbers(64, 256, seed=0, rounded=True)
    head_RD = numbers(512, 256, seed=1, rounded=True)

    def multiply() -> None:
        for _ in range(20):
            head_product(states_CD, head_RD, head_is_bfloat16=True)

    threads = [threading.Thread(target=multiply) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert SETTING.fp32_precision == before
