"""Products of numbers that bfloat16 holds, and of others."""

import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from topd_ray.teacher.product import head_dtype, head_product

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


def test_bfloat16_states_are_multiplied_as_the_same_numbers_in_float32() -> None:
    states_CD = numbers(64, 512, seed=0, rounded=True)
    head_RD = numbers(1000, 512, seed=1, rounded=True)
    want_CR = head_product(states_CD, head_RD, head_is_bfloat16=True)
    got_CR = head_product(states_CD.bfloat16(), head_RD, head_is_bfloat16=True)
    assert torch.equal(got_CR, want_CR)


@pytest.mark.parametrize(
    ("head", "states", "device", "held"),
    [
        (torch.bfloat16, torch.bfloat16, "cuda", torch.bfloat16),
        (torch.bfloat16, torch.float32, "cuda", torch.float32),
        (torch.float32, torch.bfloat16, "cuda", torch.float32),
        (torch.bfloat16, torch.bfloat16, "cpu", torch.float32),
    ],
)
def test_a_head_is_held_in_half_the_bytes_only_where_its_product_is_exact(
    head: torch.dtype, states: torch.dtype, device: str, held: torch.dtype
) -> None:
    assert head_dtype(torch.zeros(2, 2, dtype=head), states, device) == held


def test_a_product_on_a_gpu_returns_float32_without_a_float32_copy_of_the_head() -> (
    None
):
    with FakeTensorMode():  # knows the operators of a GPU, and needs none
        states_CD = torch.empty(7, 16, dtype=torch.bfloat16, device="cuda")
        head_RD = torch.empty(30, 16, dtype=torch.bfloat16, device="cuda")
        logits_CR = head_product(states_CD, head_RD, head_is_bfloat16=True)
    assert (logits_CR.dtype, logits_CR.shape) == (torch.float32, (7, 30))


@pytest.mark.gpu
def test_a_product_on_a_gpu_is_that_of_float64_up_to_float32() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    states_CD = numbers(64, 512, seed=0, rounded=True)
    head_RD = numbers(1000, 512, seed=1, rounded=True)
    got_CR = head_product(
        states_CD.bfloat16().cuda(), head_RD.bfloat16().cuda(), head_is_bfloat16=True
    )
    want_CR = states_CD.double() @ head_RD.double().T
    assert (got_CR.cpu() - want_CR).abs().max() < 512 * 2**-23


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
