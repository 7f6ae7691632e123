"""Attention over a packed sequence, without padding and without hidden pairs.

Registered with transformers under the name `PACKED`; a student opened with it hands the
keyword argument `layout` of its forward pass down to every layer. Axes: H key heads, G
query heads that share one, L tokens of the sequence, D width of a head.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface

from topd_ray.errors import UserError
from topd_ray.learner.flash import PackedFlash
from topd_ray.learner.layout import Layout

PACKED = "topd_packed"
_LAYERS = {"full_attention", "sliding_attention"}
_EXTRAS = ("softcap", "s_aux", "position_bias")  # other arithmetic than softmax(q k) v


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 HG L D"],
    key: Float[Tensor, "1 H L D"],
    value: Float[Tensor, "1 H L D"],
    attention_mask: None,  # noqa: ARG001  transformers makes none for a foreign name
    *,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 L HG D"], None]:
    """Return softmax(scaling q k) v over what each token sees, in every layer.

    transformers calls it by the name `PACKED`.

    Args:
        module: The attention layer.
        query: Queries of all heads.
        key: Keys; each is shared by G query heads.
        value: Values, shared likewise.
        attention_mask: None.
        scaling: Factor of the scores.
        dropout: Must be 0.
        sliding_window: How many tokens back the layer looks, itself included.
        layout: The segments of the sequence.
        others: Further arguments of the model; those that change the arithmetic are
            refused.

    Returns:
        The attention output, and None for the weights that are not computed.

    Raises:
        UserError: The layer needs more than this function computes.
    """
    if layout is None:
        raise _refusal(module, "does not pass a layout on to its attention")
    if dropout > 0:
        raise _refusal(
            module, f"sets attention_dropout={dropout}; set it to 0 in config.json"
        )
    if extras := [name for name in _EXTRAS if others.get(name) is not None]:
        raise _refusal(module, f"attends with {', '.join(extras)}")
    if _slides(module) != (sliding_window is not None):
        raise _refusal(
            module, f"has a layer with sliding_window={sliding_window} unlike its type"
        )
    reach = (
        sliding_window if sliding_window and sliding_window < layout.longest else None
    )
    if query.is_cuda:
        out_THLD = _compiled_flex()(
            query,
            key,
            value,
            block_mask=layout.blocks(reach),
            scale=scaling,
            enable_gqa=True,
        )
        return out_THLD.transpose(1, 2), None
    query_HGLD = query[0].view(key.shape[1], -1, *query.shape[2:])
    out_HGLD = PackedFlash.apply(  # type: ignore[no-untyped-call]
        query_HGLD, key[0], value[0], layout, scaling, reach
    )
    return out_HGLD.flatten(0, 1).transpose(0, 1)[None], None


AttentionInterface.register(PACKED, packed_attention)


@torch.no_grad()
def check_isolation(student: Any) -> None:
    """Check that no token of a packed sequence sees another rollout.

    A model may use an attention that is not replaceable, mix tokens outside its
    attention, or not pass the layout on. The check packs two rollouts of one token, the
    first with NaN as embedding; the second must stay finite.

    Args:
        student: A causal language model of transformers.

    Raises:
        UserError: A token sees another rollout beside its own.
    """
    layers = set(getattr(student.config, "layer_types", None) or ())
    if layers - _LAYERS:
        raise _refusal(
            student, f"has layers of type {', '.join(sorted(layers - _LAYERS))}"
        )
    ids_SL = torch.zeros((1, 2), dtype=torch.long, device=student.device)
    embeds_SLD = student.get_input_embeddings()(ids_SL).clone()
    embeds_SLD[:, 0] = torch.nan
    layout = Layout(*torch.tensor([[1, 1], [0, 1], [0, 0]], device=student.device))
    try:
        states_SLD = student.base_model(
            inputs_embeds=embeds_SLD,
            position_ids=ids_SL,
            use_cache=False,
            layout=layout,
        ).last_hidden_state
    except TypeError as error:  # an unknown argument
        raise _refusal(student, f"takes no layout ({error})") from error
    if not states_SLD[:, 1].isfinite().all():
        raise _refusal(student, "lets tokens see each other outside its attention")


def _slides(module: Any) -> bool:
    """Return whether the layer has a sliding window, by the model's config."""
    config = module.config
    layers = getattr(config, "layer_types", None)
    if layers is None:
        return getattr(config, "sliding_window", None) is not None
    return bool(layers[module.layer_idx] == "sliding_attention")


def _refusal(module: Any, why: str) -> UserError:
    return UserError(
        f"a student of type {module.config.model_type} {why}; rollouts are packed into"
        " one sequence, which needs plain attention in every layer. Choose another"
        " learner.model"
    )


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)


__all__ = ["PACKED", "check_isolation", "packed_attention"]
