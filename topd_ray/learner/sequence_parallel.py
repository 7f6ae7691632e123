"""One packed sequence over several ranks, each with a slice of its tokens.

All of a model but attention works on tokens alone. For attention the ranks exchange
(DeepSpeed Ulysses; Jacobs et al., 2023): each gets all tokens for its share of the
heads, attends, and gives every rank the outputs of its tokens. Each rank has the losses
at its positions, so losses and gradients are sums over ranks as they are over
rollouts.

DeepSpeed's own module splits a batch with labels and a mean loss; here a micro-batch
has windows, segments and soft targets, and the loss is a sum. So the exchange is
written around our attention, and DeepSpeed sees data-parallel ranks alone.

Axes: L tokens of the sequence, L/N those of a rank, H heads, H/N those of a rank, D
width of a head; T, TU and Q as in `TrainBatch`.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

from topd_ray.learner.attention import packed_attention
from topd_ray.messages import TeacherSignal, TrainBatch

PACKED_AND_SPLIT = "topd_packed_and_split"
"""Name by which transformers knows `split_attention`."""


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """The ranks that share one sequence, seen from one of them."""

    index: int
    """Place of this rank among them."""
    size: int
    """N, the number of ranks."""
    process_group: Any

    def own(self, num_tokens: int) -> slice:
        """Return the tokens of this rank; N divides their number."""
        count = num_tokens // self.size
        return slice(self.index * count, (self.index + 1) * count)


def open_sequence_group(rank: int, *, num_ranks: int, size: int) -> SequenceGroup:
    """Return the group of a rank: `size` successive ranks share a sequence.

    Every rank must call it, once the ranks have joined.
    """
    own: Any = None
    # Every process takes part in the making of every group.
    for first in range(0, num_ranks, size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= rank < first + size:
            own = group
    return SequenceGroup(index=rank % size, size=size, process_group=own)


def own_part(batch: TrainBatch, *, index: int, size: int) -> TrainBatch:
    """Return a micro-batch with the trained positions of one rank's tokens alone.

    Args:
        batch: The micro-batch that the ranks of a group share.
        index: Place of the rank in its group.
        size: N, the number of ranks of the group.

    Returns:
        The same tokens and segments, with a segment of padding behind them where N does
        not divide L. `position_TU` still counts from the start of the sequence.
    """
    batch = _padded(batch, size)
    count = len(batch.input_ids_L) // size
    own_TU = batch.position_TU // count == index
    num_trained = len(batch.response_ids_T)
    own_T = own_TU[:num_trained]
    own_Q = own_TU[batch.window_Q]
    place_TU = np.cumsum(own_TU) - 1
    return replace(
        batch,
        position_TU=batch.position_TU[own_TU],
        response_ids_T=batch.response_ids_T[own_T],
        logp_T=batch.logp_T[own_T],
        weight_T=batch.weight_T[own_T],
        # Without marks these two are empty.
        reverse_T=batch.reverse_T[own_T[: len(batch.reverse_T)]],
        forward_T=batch.forward_T[own_T[: len(batch.forward_T)]],
        signal=_rows(batch.signal, own_T),
        window_Q=place_TU[batch.window_Q][own_Q].astype(batch.window_Q.dtype),
        target_ids_QK=batch.target_ids_QK[own_Q],
        target_weights_QK=batch.target_weights_QK[own_Q],
    )


def split_attention(
    module: nn.Module,
    query: Float[Tensor, "1 HG LN D"],
    key: Float[Tensor, "1 H LN D"],
    value: Float[Tensor, "1 H LN D"],
    attention_mask: None,
    *,
    sequence_group: SequenceGroup | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "1 LN HG D"], None]:
    """Return `packed_attention` of this rank's tokens over the whole sequence.

    Args:
        module: The attention layer.
        query: Queries of this rank's tokens, all heads.
        key: Keys; each is shared by G query heads. Where there are fewer than ranks,
            several ranks get the same.
        value: Values, shared likewise.
        attention_mask: None.
        sequence_group: Who has the other tokens; None where this rank has all.
        options: As `packed_attention` takes them; the layout is of the whole sequence.

    Returns:
        The attention output of this rank's tokens, and None for the weights.
    """
    if sequence_group is None:
        return packed_attention(module, query, key, value, attention_mask, **options)
    copies = max(1, sequence_group.size // key.shape[1])
    out_1LHD, _ = packed_attention(
        module,
        _whole_sequence(query, sequence_group),
        _whole_sequence(key.repeat_interleave(copies, 1), sequence_group),
        _whole_sequence(value.repeat_interleave(copies, 1), sequence_group),
        attention_mask,
        **options,
    )
    return _whole_heads(out_1LHD.transpose(1, 2), sequence_group).transpose(1, 2), None


AttentionInterface.register(PACKED_AND_SPLIT, split_attention)


def _padded(batch: TrainBatch, size: int) -> TrainBatch:
    num_padding = -len(batch.input_ids_L) % size
    if not num_padding:
        return batch
    return replace(
        batch,
        input_ids_L=_longer(batch.input_ids_L, [0] * num_padding),
        length_S=_longer(batch.length_S, [num_padding]),
        # a segment that is its own trunk sees itself alone
        trunk_S=_longer(batch.trunk_S, [len(batch.trunk_S)]),
        branch_S=_longer(batch.branch_S, [0]),
    )


def _longer(array: NDArray[Any], more: list[int]) -> NDArray[Any]:
    return np.concatenate([array, np.array(more, array.dtype)])


def _rows(signal: TeacherSignal, own_T: Bool[np.ndarray, "T"]) -> TeacherSignal:
    rows = {f.name: getattr(signal, f.name)[own_T] for f in fields(signal)}
    return replace(signal, **rows)


def _whole_sequence(
    x: Float[Tensor, "1 H LN D"], group: SequenceGroup
) -> Float[Tensor, "1 HN L D"]:
    """Give away heads, get tokens."""
    whole: Tensor = _Exchange.apply(x[0], group, True)  # type: ignore[no-untyped-call]
    return whole[None]


def _whole_heads(
    x: Float[Tensor, "1 HN L D"], group: SequenceGroup
) -> Float[Tensor, "1 H LN D"]:
    """Give away tokens, get heads."""
    whole: Tensor = _Exchange.apply(x[0], group, False)  # type: ignore[no-untyped-call]
    return whole[None]


class _Exchange(torch.autograd.Function):
    """Heads for tokens, or tokens for heads; either is the other's backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SequenceGroup, to_tokens: bool) -> Tensor:
        ctx.group = group
        ctx.to_tokens = to_tokens
        return _exchanged(x, group, to_tokens=to_tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = _exchanged(grads[0], ctx.group, to_tokens=not ctx.to_tokens)
        return grad, None, None


def _exchanged(x: Tensor, group: SequenceGroup, *, to_tokens: bool) -> Tensor:
    """Exchange (H, L/N, D) for (H/N, L, D), or back."""
    width = x.shape[2]
    if to_tokens:
        sent = x.reshape(group.size, -1, x.shape[1], width)
    else:
        sent = x.reshape(x.shape[0], group.size, -1, width).transpose(0, 1)
    sent = sent.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group.process_group)
    if to_tokens:
        return received.transpose(0, 1).reshape(received.shape[1], -1, width)
    return received.reshape(-1, received.shape[2], width)


__all__ = [
    "PACKED_AND_SPLIT",
    "SequenceGroup",
    "open_sequence_group",
    "own_part",
    "split_attention",
]
