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
        states_CD: Hidden states in float32; those of an engine in bfloat16 are numbers
            that bfloat16 holds.
        head_RD: Output head in float32.
        head_is_bfloat16: Whether bfloat16 holds every number of the head.

    Returns:
        Logits.
    """
    if head_is_bfloat16 and torch.equal(states_CD, states_CD.bfloat16().float()):
        with _bfloat16_units():
            return states_CD @ head_RD.T
    return states_CD @ head_RD.T


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


__all__ = ["head_product"]
