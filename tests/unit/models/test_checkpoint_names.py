"""Weights leave the learner under the names and shapes of the published files.

Whole models on the meta device: no memory, and nothing is downloaded. Axes: L layers, E
experts.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from tests.tiny import make_experts
from topd_ray.models.architecture import load_causal_lm
from topd_ray.models.checkpoint_names import CheckpointNames

Published = dict[str, tuple[int, ...]]
VOCABULARY = 151_936
HEAD_DIM = 128


def dense(hidden: int, layers: int, heads: int, mlp: int, *, tied: bool) -> Any:
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=HEAD_DIM,
        tie_word_embeddings=tied,
    )


def mixture() -> Any:
    return Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=HEAD_DIM,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        tie_word_embeddings=False,
    )


def published(config: Any) -> Published:
    """Names and shapes of the files of a Qwen3, as their index lists them."""
    hidden = config.hidden_size
    queries = config.num_attention_heads * HEAD_DIM
    keys = config.num_key_value_heads * HEAD_DIM
    tensors: Published = {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (VOCABULARY, hidden)
    for layer in range(config.num_hidden_layers):
        inside = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "self_attn.q_norm": (HEAD_DIM,),
            "self_attn.k_norm": (HEAD_DIM,),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            **feed_forward(config),
        }
        for name, shape in inside.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = shape
    return tensors


def feed_forward(config: Any) -> Published:
    def matrices(prefix: str, width: int) -> Published:
        return {
            f"{prefix}.gate_proj": (width, config.hidden_size),
            f"{prefix}.up_proj": (width, config.hidden_size),
            f"{prefix}.down_proj": (config.hidden_size, width),
        }

    if not hasattr(config, "num_experts"):
        return matrices("mlp", config.intermediate_size)
    experts: Published = {"mlp.gate": (config.num_experts, config.hidden_size)}
    for expert in range(config.num_experts):
        experts |= matrices(f"mlp.experts.{expert}", config.moe_intermediate_size)
    return experts


@pytest.mark.parametrize(
    ("config", "num_tensors", "num_parameters"),
    [
        pytest.param(dense(2560, 36, 32, 9728, tied=True), 398, 4_022_468_096, id="4B"),
        pytest.param(
            dense(5120, 64, 64, 25600, tied=False), 707, 32_762_123_264, id="32B"
        ),
        pytest.param(mixture(), 18_867, 30_532_122_624, id="30B-A3B"),
    ],
)
def test_a_model_leaves_under_the_names_and_shapes_of_its_published_files(
    config: Any, num_tensors: int, num_parameters: int
) -> None:
    expected = published(config)
    assert len(expected) == num_tensors
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = CheckpointNames(model)
    sent = {
        name: tuple(weight.shape)
        for parameter, held in model.named_parameters()
        for name, weight in names.of(parameter, held)
    }
    assert sent == expected
    assert sum(held.numel() for held in model.parameters()) == num_parameters


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experts(tmp_path_factory.mktemp("experts"))


def test_experts_leave_with_the_numbers_that_were_read(experts: Path) -> None:
    held = load_file(experts / "model.safetensors")
    model = load_causal_lm(experts, dtype=torch.float32)
    names = CheckpointNames(model)
    sent = {
        name: weight
        for parameter, weights in model.named_parameters()
        for name, weight in names.of(parameter, weights.detach())
    }
    assert sent.keys() == held.keys()
    for name, weight in sent.items():
        torch.testing.assert_close(weight, held[name], rtol=0, atol=0)


def test_places_lead_back_into_the_joined_weight(experts: Path) -> None:
    model = load_causal_lm(experts, dtype=torch.float32)
    names = CheckpointNames(model)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    joined = dict(model.named_parameters())[name].detach()
    again = torch.zeros(joined.numel())
    apart = dict(names.of(name, joined))
    for part, places in names.places(name, joined):
        again[places.reshape(-1)] = apart[part].reshape(-1)
    torch.testing.assert_close(again.reshape(joined.shape), joined, rtol=0, atol=0)
