"""The attention of a packed sequence against plain softmax under a mask, and what is
refused.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, AutoModelForCausalLM

from tests.unit.learner.layouts import TREE, make_layout
from topd_ray.errors import UserError
from topd_ray.learner.attention import PACKED, check_isolation, packed_attention
from topd_ray.learner.layout import Layout

ROLLOUTS = ((5, 0, 0), (1, 1, 0), (9, 2, 0), (3, 3, 0))
LONG = ((300, 0, 0), (49, 0, 120), (49, 0, 299), (200, 3, 0), (20, 3, 1))
"""More than one block of the kernel."""
SCALE = 0.3


class Layer(nn.Module):
    """What the attention function asks of the module that calls it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.layer_idx = config, 0


FULL = AutoConfig.for_model("qwen3")
SLIDING = AutoConfig.for_model(
    "qwen3",
    layer_types=["sliding_attention"] * 32,
    sliding_window=4,
    use_sliding_window=True,
)


def heads(layout: Layout, *, num: int, shared: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value, as transformers makes them: transposed."""
    rng = torch.Generator().manual_seed(num)
    return [
        torch.randn(1, len(layout.place_L), count, 16, generator=rng, dtype=dtype)
        .transpose(1, 2)
        .requires_grad_()
        for count in (num * shared, num, num)
    ]


def by_mask(layout: Layout, inputs: list[Tensor], reach: int | None = None) -> Tensor:
    query, key, value = inputs
    shared = query.shape[1] // key.shape[1]
    index_L = torch.arange(len(layout.place_L))
    seen_LL = layout.sees(index_L[:, None], index_L, reach)
    key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * SCALE).masked_fill(~seen_LL, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("segments", [TREE, ROLLOUTS, LONG])
@pytest.mark.parametrize(("num", "shared"), [(1, 1), (2, 3)])
def test_output_and_gradients_are_those_of_a_mask(segments, num, shared) -> None:
    """Both sum hundreds of float32 products in another order: a few ulp of values near
    1.
    """
    layout = make_layout(*segments)
    inputs = heads(layout, num=num, shared=shared, dtype=torch.float32)
    got, _ = packed_attention(Layer(FULL), *inputs, None, scaling=SCALE, layout=layout)
    want = by_mask(layout, inputs)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)
    given = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    for one, other in zip(
        torch.autograd.grad(got, inputs, given),
        torch.autograd.grad(want, inputs, given),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_off_by_its_own_rounding_alone() -> None:
    layout = make_layout(*LONG)
    inputs = heads(layout, num=2, shared=2, dtype=torch.bfloat16)
    got, _ = packed_attention(Layer(FULL), *inputs, None, scaling=SCALE, layout=layout)
    want = by_mask(layout, [x.float() for x in inputs])
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=2**-7, atol=2**-6)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(got.sum(), inputs))


@pytest.mark.parametrize("segments", [TREE, ROLLOUTS, LONG])
def test_a_sliding_window_reaches_over_the_last_tokens_alone(segments) -> None:
    layout = make_layout(*segments)
    inputs = heads(layout, num=2, shared=1, dtype=torch.float32)
    got, _ = packed_attention(
        Layer(SLIDING), *inputs, None, scaling=SCALE, layout=layout, sliding_window=4
    )
    want = by_mask(layout, inputs, 4)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)
    for one, other in zip(
        torch.autograd.grad(got.sum(), inputs),
        torch.autograd.grad(want.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("reach", [None, 3])
@torch.no_grad()
def test_flex_attention_is_told_the_same(reach) -> None:
    layout = make_layout(*LONG)
    query, key, value = (
        x.detach() for x in heads(layout, num=2, shared=2, dtype=torch.float32)
    )
    got = flex_attention(
        query, key, value, block_mask=layout.blocks(reach), scale=SCALE, enable_gqa=True
    )
    want = by_mask(layout, [query, key, value], reach)
    torch.testing.assert_close(got.transpose(1, 2), want, rtol=1e-5, atol=2e-6)
    assert layout.blocks(reach) is layout.blocks(reach)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("segments", [TREE, ROLLOUTS, LONG])
@pytest.mark.parametrize(("num", "shared"), [(1, 1), (2, 3), (2, 7)])
def test_the_gpu_computes_what_the_cpu_does(segments, num, shared) -> None:
    on_cpu, on_gpu = (
        make_layout(*segments),
        Layout(*torch.tensor(segments, device="cuda").unbind(1)),
    )
    inputs = heads(on_cpu, num=num, shared=shared, dtype=torch.float32)
    moved = [x.detach().cuda().requires_grad_() for x in inputs]
    want, _ = packed_attention(Layer(FULL), *inputs, None, scaling=SCALE, layout=on_cpu)
    got, _ = packed_attention(Layer(FULL), *moved, None, scaling=SCALE, layout=on_gpu)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-2, atol=1e-2)  # TF32: 10 bits
    for one, other in zip(
        torch.autograd.grad(got.sum(), moved),
        torch.autograd.grad(want.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-2, atol=3e-2)


@pytest.mark.parametrize(
    ("config", "call", "words"),
    [
        (FULL, {"layout": None}, "does not pass a layout on"),
        (FULL, {"dropout": 0.1}, r"attention_dropout=0\.1; set it to 0"),
        (FULL, {"softcap": 30.0}, "attends with softcap"),
        (FULL, {"sliding_window": 4}, "sliding_window=4 unlike"),
        (SLIDING, {}, "sliding_window=None unlike"),
    ],
)
def test_what_would_be_computed_differently_is_refused(config, call, words) -> None:
    layout = make_layout(*TREE)
    inputs = heads(layout, num=1, shared=1, dtype=torch.float32)
    with pytest.raises(UserError, match=f"type qwen3.*{words}"):
        packed_attention(
            Layer(config), *inputs, None, **{"scaling": SCALE, "layout": layout} | call
        )


SMALL = {
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "attn_implementation": PACKED,
}


def student(kind: str, **fields: Any) -> Any:
    settings = AutoConfig.for_model(kind, **SMALL | {"pad_token_id": 0} | fields)
    return AutoModelForCausalLM.from_config(settings, attn_implementation=PACKED)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("qwen2", {}),
        ("qwen3", {}),
        ("llama", {}),
        ("mistral", {"sliding_window": 4}),
        ("gemma3_text", {"sliding_window": 4, "query_pre_attn_scalar": 8}),
        (
            "qwen3_moe",
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
        ),
    ],
)
def test_students_whose_tokens_meet_in_attention_alone_are_taken(kind, fields) -> None:
    check_isolation(student(kind, **fields))


def test_a_student_that_keeps_the_layout_to_itself_is_refused() -> None:
    one = student("llama")
    forward = one.base_model.forward
    one.base_model.forward = lambda **given: forward(**given | {"layout": None})
    with pytest.raises(UserError, match="type llama does not pass a layout on"):
        check_isolation(one)


def test_a_student_that_takes_no_layout_is_refused() -> None:
    def forward(
        *, inputs_embeds: Tensor, position_ids: Tensor, use_cache: bool
    ) -> None:
        del inputs_embeds, position_ids, use_cache

    one = student("llama")
    one.base_model.forward = forward
    with pytest.raises(UserError, match=r"takes no layout.*'layout'"):
        check_isolation(one)


def test_a_student_that_attends_in_its_own_way_is_refused() -> None:
    one = student("llama")
    one.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match="type llama lets tokens see each other"):
        check_isolation(one)


def test_a_student_with_layers_of_another_kind_is_refused_by_name() -> None:
    one = student("qwen3")
    one.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(UserError, match="layers of type chunked_attention"):
        check_isolation(one)
