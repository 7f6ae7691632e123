"""Keys that each token sees, as intervals -> the block mask of flex attention.

torch makes a block mask out of a mask of all pairs, five copies of L x L bytes: 5 GB
for 32k tokens. What a token sees are a few intervals of keys, so here the pairs of a
block are counted without a mask.

Axes: L tokens, B blocks of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Tokens of a block, as flex attention has it by default."""
KeyInterval = tuple[Int[Tensor, "L"], Int[Tensor, "L"]]
"""For each token the first key that it sees, and the one behind the last; none where
the second is not larger.
"""


def block_mask(seen: Sequence[KeyInterval], mask_mod: Any) -> BlockMask:
    """Return the block mask of tokens that see some intervals of keys.

    Args:
        seen: Intervals that do not overlap.
        mask_mod: Says of a pair of tokens whether one sees the other, as flex attention
            calls it; it must agree with `seen`.

    Returns:
        What torch's `create_block_mask` returns for `mask_mod`.
    """
    length = len(seen[0][0])
    pairs_BB = _count_pairs(seen)
    is_full_BB = pairs_BB == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_ordered((pairs_BB > 0) & ~is_full_BB),
        *_ordered(is_full_BB),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(length, length),
    )


def _count_pairs(seen: Sequence[KeyInterval]) -> Tensor:
    """Return how many pairs of a block of queries and a block of keys are seen."""
    length = len(seen[0][0])
    num_blocks = -(-length // BLOCK)
    start_B = BLOCK * torch.arange(num_blocks, device=seen[0][0].device)
    keys_LB = torch.zeros(
        (num_blocks * BLOCK, num_blocks), dtype=torch.int32, device=start_B.device
    )
    for first_L, end_L in seen:
        last_LB = torch.minimum(end_L[:, None], start_B + BLOCK)
        keys_LB[:length] += (last_LB - torch.maximum(first_L[:, None], start_B)).clamp(
            min=0
        )
    return keys_LB.view(num_blocks, BLOCK, num_blocks).sum(1)


def _ordered(wanted_BB: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks each row has, and which: those first, in their order.

    Two more axes stand for all batches and all heads.
    """
    wanted_BB = wanted_BB[None, None].int()
    order_BB = torch.argsort(wanted_BB, dim=-1, descending=True, stable=True)
    return wanted_BB.sum(-1, dtype=torch.int32), order_BB.int()


__all__ = ["BLOCK", "block_mask"]
