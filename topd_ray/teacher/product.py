"""Hidden states and output head -> logits in float32, at the rate of bfloat16.

Axes: C positions, R rows of the head, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_SETTING = Lock()
"""Held while the process's setting is another: calls come from several threads."""


def head_product(
    states_CD: Float[Tensor, "C D"],
    head_RD: Float[Tensor, "R D"],
    *,
    head_is_bfloat16: bool,
) -> Float[Tensor, "C R"]:
    """Return states x head^T, summed and returned in float32.

    Numbers that bfloat16 holds are multiplied exactly by a CPU's bfloat16 units, at two
    to three times the rate; a bfloat16 product of torch would round the sums too. Other
    numbers are multiplied in float32.

    Args:
        states_CD: Hidden states, in float32 or bfloat16; those of an engine in bfloat16
            are numbers that bfloat16 holds.
        head_RD: Output head in float32; on a GPU in bfloat16 where the states are too.
        head_is_bfloat16: Whether bfloat16 holds every number of the head.

    Returns:
        Logits.
    """
    if head_RD.dtype == torch.bfloat16:
        # The units of a GPU sum in float32, and this product does not round the sums.
        return torch.mm(states_CD.bfloat16(), head_RD.T, out_dtype=torch.float32)
    exact = states_CD.dtype == torch.bfloat16
    states_CD = states_CD.float()
    exact = exact or torch.equal(states_CD, states_CD.bfloat16().float())
    if head_is_bfloat16 and exact:
        with _bfloat16_units():
            return states_CD @ head_RD.T
    return states_CD @ head_RD.T


def head_dtype(
    head_RD: Float[Tensor, "R D"], states: torch.dtype, device: str
) -> torch.dtype:
    """Return the number format in which a head is held for `head_product`.

    Args:
        head_RD: The head as its model has it.
        states: Number format in which the engine computes the hidden states.
        device: `cpu` or `cuda`. A CPU has no product of bfloat16 with exact sums.
    """
    is_half = head_RD.dtype == states == torch.bfloat16
    return torch.bfloat16 if is_half and device == "cuda" else torch.float32


@contextmanager
def _bfloat16_units() -> Iterator[None]:
    """Let float32 products of a CPU round their inputs to bfloat16, in this process."""
    mkldnn: Any = torch.backends.mkldnn
    setting = mkldnn.matmul
    with _SETTING:
        before = setting.fp32_precision
        setting.fp32_precision = "bf16"
        try:
            yield
        finally:
            setting.fp32_precision = before


__all__ = ["head_dtype", "head_product"]
