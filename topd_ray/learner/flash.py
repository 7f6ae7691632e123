"""Attention over a packed sequence on CPU, by the kernel behind `scaled_dot_product_attention`.

Every segment sees itself causally; a window also sees the start of its trunk. The two parts are two
calls, merged by their log-sum-exp: no mask is made, and no prefix copied. In the backward pass each
part takes the merged output and log-sum-exp, so that its probabilities are those of the whole.

Axes: H key heads, G query heads that share one, L tokens of the sequence, M tokens of a segment, D
width of a head.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from topd_ray.learner.layout import Layout

# By name, for the log-sum-exp that scaled_dot_product_attention keeps to itself
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Queries = Float[Tensor, "H G L D"]
Keys = Float[Tensor, "H L D"]


class PackedFlash(torch.autograd.Function):
    """(query, key, value, layout, scale, reach) -> attention of every token over what it sees.

    `reach` is how many tokens back a token looks, itself included; None for all, as windows need.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_HGLD: Queries,
        key_HLD: Keys,
        value_HLD: Keys,
        layout: Layout,
        scale: float,
        reach: int | None,
    ) -> Queries:
        """In memory (L, H, G, D), as what comes after attention reads it."""
        out_HGLD = _in_rows(query_HGLD)
        lse_HGL = torch.empty(query_HGLD.shape[:3], dtype=torch.float32)
        num_shared = query_HGLD.shape[1]
        for segment in layout.segments:
            own = segment.own
            query_HGMD = query_HGLD[:, :, own]
            out, lse = _flash(
                query_HGMD,
                _shared(key_HLD[:, own], num_shared),
                _shared(value_HLD[:, own], num_shared),
                is_causal=reach is None,
                attn_mask=_band(query_HGMD, reach),
                scale=scale,
            )
            if segment.before:
                keys, values = key_HLD[:, None, segment.before], value_HLD[:, None, segment.before]
                before, before_lse = _flash(_folded(query_HGMD), keys, values, scale=scale)
                out, lse = _merged(
                    out, lse, before.view(query_HGMD.shape), before_lse.reshape(lse.shape)
                )
            out_HGLD[:, :, own], lse_HGL[:, :, own] = out, lse
        ctx.save_for_backward(query_HGLD, key_HLD, value_HLD, out_HGLD, lse_HGL)
        ctx.layout, ctx.scale, ctx.reach = layout, scale, reach
        return out_HGLD

    @staticmethod
    def backward(ctx: Any, grad_HGLD: Queries) -> tuple[Any, ...]:
        """Of query, key and value."""
        query_HGLD, key_HLD, value_HLD, out_HGLD, lse_HGL = ctx.saved_tensors
        to_query, to_key, to_value = map(_in_rows, (query_HGLD, key_HLD, value_HLD))
        num_shared = query_HGLD.shape[1]
        for segment in ctx.layout.segments:  # a trunk's gradient is there before its windows add
            own, before = segment.own, segment.before
            query, out, grad = (x[:, :, own] for x in (query_HGLD, out_HGLD, grad_HGLD))
            lse = lse_HGL[:, :, own]
            of_query, of_key, of_value = _flash_backward(
                grad,
                query,
                _shared(key_HLD[:, own], num_shared),
                _shared(value_HLD[:, own], num_shared),
                out,
                lse,
                0.0,
                ctx.reach is None,
                attn_mask=_band(query, ctx.reach),
                scale=ctx.scale,
            )
            to_query[:, :, own] = of_query
            to_key[:, own], to_value[:, own] = of_key.sum(1), of_value.sum(1)
            if before:
                of_query, of_key, of_value = _flash_backward(
                    _folded(grad),
                    _folded(query),
                    key_HLD[:, None, before],
                    value_HLD[:, None, before],
                    _folded(out),
                    _folded(lse),
                    0.0,
                    False,
                    scale=ctx.scale,
                )
                to_query[:, :, own] += of_query.reshape(query.shape)
                to_key[:, before] += of_key[:, 0]
                to_value[:, before] += of_value[:, 0]
        return to_query, to_key, to_value, None, None, None


def _in_rows(like: Tensor) -> Tensor:
    """Uninitialised; its token axis, the last but one, is the first in memory."""
    *heads, tokens, width = like.shape
    return like.new_empty(tokens, *heads, width).movedim(0, -2)


def _shared(keys_HMD: Keys, num: int) -> Float[Tensor, "H G M D"]:
    """The same keys for each of the query heads that share them; a view."""
    return keys_HMD[:, None].expand(-1, num, -1, -1)


def _folded(queries: Float[Tensor, "H G *M"]) -> Float[Tensor, "H 1 *GM"]:
    """Heads that share their keys one behind the other: where all see all, they are one head."""
    return queries.flatten(1, 2)[:, None]


def _merged(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from that over each and its log-sum-exp."""
    both = torch.logaddexp(lse, other_lse)
    share = (lse - both).exp()[..., None]
    return torch.lerp(other.float(), out.float(), share), both


def _band(query_HGMD: Queries, reach: int | None) -> Tensor | None:
    """Mask of a layer that looks back `reach` tokens; the kernel knows plain causality itself."""
    if reach is None:
        return None
    index_M = torch.arange(query_HGMD.shape[2])
    back_MM = index_M[:, None] - index_M
    seen_MM = (back_MM >= 0) & (back_MM < reach)
    mask_MM = torch.zeros(seen_MM.shape, dtype=query_HGMD.dtype)
    return mask_MM.masked_fill(~seen_MM, -torch.inf)[None, None]


__all__ = ["PackedFlash"]
