"""Which layers of a student have adapters, and which configs are refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_experts
from tests.unit.learner.models import make
from topd_ray.config import LoraConfig
from topd_ray.errors import UserError
from topd_ray.learner.lora import add_adapters
from topd_ray.models.adapters import check_adapters, num_adapter_parameters

LAYERS = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"targets": ("q_proj", "query")},
            f"targets: query names no linear layer of .*; its layers are {LAYERS}$",
        ),
        ({"targets": ("proj",)}, "targets: proj names no linear layer"),
        ({"targets": ("embed_tokens",)}, "targets: embed_tokens names no linear layer"),
        ({"targets": ("lm_head",)}, "targets: lm_head names the output head"),
        (
            {"targets": ("layers.1.mlp.up_proj",), "rank": 33},
            "rank=33 is more than model.layers.1.mlp.up_proj of .*, 64 x 32, can have;"
            " set it to at most 32",
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused_by_name(
    student_folder: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"learner.lora.{message}"):
        check_adapters(student_folder, LoraConfig(**fields))


def test_joined_experts_are_no_linear_layers(tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, targets=("gate_proj",))
    with pytest.raises(UserError, match="gate_proj names no linear layer"):
        check_adapters(make_experts(tmp_path), lora)


@pytest.mark.parametrize(
    "targets",
    [None, ("v_proj",), ("layers.0.mlp.down_proj", "self_attn.q_proj", "q_proj")],
)
def test_the_number_of_parameters_is_that_of_the_adapters(
    student_folder: Path, targets: tuple[str, ...] | None
) -> None:
    lora = (
        LoraConfig(rank=2) if targets is None else LoraConfig(rank=2, targets=targets)
    )
    check_adapters(student_folder, lora)
    student = make(student_folder).student
    add_adapters(student, lora, seed=0)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert num_adapter_parameters(student_folder, lora) == trained
