"""Attention over a packed sequence on CPU, by torch's flash kernel.

Each run of the layout is one call, on the keys that it sees and no others. The autograd
function is written by hand: autograd would make a gradient as long as the sequence for
every slice that is taken of it.

Axes: H key heads, G query heads that share one, L tokens of the sequence, M tokens of a
run, BM what they see: tokens before it and its own, D width of a head.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from topd_ray.learner.layout import Layout, TokenRun

# The private kernels of `scaled_dot_product_attention`, because the public function
# does not return the log-sum-exp that the backward pass needs.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Queries = Float[Tensor, "H G L D"]
Keys = Float[Tensor, "H L D"]


class PackedFlash(torch.autograd.Function):
    """Attention of every token over what it sees.

    Called with (query, key, value, layout, scale, reach). `reach` is how many tokens
    back a token looks, itself included; None for all.
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
        """Return the attention output.

        Its memory is ordered (L, H, G, D), as the layer's next operation reads it.
        """
        out_HGLD = _in_order(query_HGLD)
        lse_HGL = torch.empty(query_HGLD.shape[:3], dtype=torch.float32)
        num_shared = query_HGLD.shape[1]
        for run in layout.runs:
            mask = layout.mask(run, reach, query_HGLD.dtype)
            out_HGLD[:, :, run.own], lse_HGL[:, :, run.own] = _flash(
                query_HGLD[:, :, run.own],
                _seen(run, key_HLD, num_shared),
                _seen(run, value_HLD, num_shared),
                is_causal=mask is None,
                attn_mask=mask,
                scale=scale,
            )
        ctx.save_for_backward(query_HGLD, key_HLD, value_HLD, out_HGLD, lse_HGL)
        ctx.layout = layout
        ctx.scale = scale
        ctx.reach = reach
        return out_HGLD

    @staticmethod
    def backward(ctx: Any, grad_HGLD: Queries) -> tuple[Any, ...]:
        """Return the gradients of query, key and value."""
        query_HGLD, key_HLD, value_HLD, out_HGLD, lse_HGL = ctx.saved_tensors
        to_query, to_key, to_value = map(_in_order, (query_HGLD, key_HLD, value_HLD))
        num_shared = query_HGLD.shape[1]
        for run in ctx.layout.runs:
            mask = ctx.layout.mask(run, ctx.reach, query_HGLD.dtype)
            of_query, of_key, of_value = _flash_backward(
                grad_HGLD[:, :, run.own],
                query_HGLD[:, :, run.own],
                _seen(run, key_HLD, num_shared),
                _seen(run, value_HLD, num_shared),
                out_HGLD[:, :, run.own],
                lse_HGL[:, :, run.own],
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            to_query[:, :, run.own] = of_query
            _add(run, to_key, of_key.sum(1))
            _add(run, to_value, of_value.sum(1))
        return to_query, to_key, to_value, None, None, None


def _in_order(like: Tensor) -> Tensor:
    """Return uninitialised memory whose last axis but one, the tokens, comes first."""
    *heads, tokens, width = like.shape
    return like.new_empty(tokens, *heads, width).movedim(0, -2)


def _seen(run: TokenRun, keys_HLD: Keys, num_shared: int) -> Float[Tensor, "H G BM D"]:
    """Return the keys that a run sees, for each query head that shares them.

    For a rollout that is a view; the keys of a window and of its trunk are copied.
    """
    keys = keys_HLD[:, run.own]
    if run.before:
        keys = torch.cat([keys_HLD[:, run.before], keys], 1)
    return keys[:, None].expand(-1, num_shared, -1, -1)


def _add(run: TokenRun, total_HLD: Keys, grad: Float[Tensor, "H BM D"]) -> None:
    """Add the gradient of the keys that a run sees to the whole gradient."""
    # A run overwrites its own part and adds to its trunk's: the memory starts
    # uninitialised, and a trunk's run always comes before those of its windows.
    num_own = run.own.stop - run.own.start
    total_HLD[:, run.own] = grad[:, -num_own:]
    if run.before:
        total_HLD[:, run.before] += grad[:, :-num_own]


__all__ = ["PackedFlash"]
