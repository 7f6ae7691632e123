"""Models that a run cannot use are refused by the name of what they do."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PhiConfig

from tests.tiny import EOS_ID, PAD_ID, VOCAB
from tests.unit.models.edits import edit_json
from topd_ray.errors import UserError
from topd_ray.models.refusals import check_logits

SIZES: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
    "bos_token_id": None,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("final_logit_softcapping", 30.0),
        ("logits_soft_cap", 30.0),
        ("logit_scale", 0.0625),
        ("logit_scale", "inv_sqrt_d_model"),
        ("logits_scaling", 8.0),
        ("lm_head_multiplier", 0.5),
        ("output_multiplier", 0.2),
        ("dim_model_base", 256),
    ],
)
def test_a_model_that_transforms_its_logits_is_refused_by_field_and_role(
    field: str, value: object, folder: Path
) -> None:
    check_logits(folder, role="teacher")
    edit_json("config.json", **{field: value})(folder)
    with pytest.raises(UserError, match=rf"^teacher: {folder}: .* {field}={value}"):
        check_logits(folder, role="teacher")


@pytest.mark.parametrize(
    ("field", "value"),
    [("logits_scaling", 1), ("logit_scale", 1.0), ("dim_model_base", 32)],
)
def test_a_transform_that_changes_nothing_is_no_reason(
    field: str, value: object, folder: Path
) -> None:
    edit_json("config.json", **{field: value})(folder)
    check_logits(folder, role="student")


SILENT = {
    "cohere": "logit_scale=0.0625",
    "cohere2": "logit_scale=0.0625",
    "gemma2": "final_logit_softcapping=30",
    "gemma3n_text": "final_logit_softcapping=30",
    "nanochat": "final_logit_softcapping=15",
    "recurrent_gemma": "logits_soft_cap=30",
    "vaultgemma": "final_logit_softcapping=30",
    "xlstm": "output_logit_soft_cap=30",
}
"""What transformers assumes for a `model_type` whose config.json leaves the field
out.
"""


@pytest.mark.parametrize("model_type", sorted(SILENT))
def test_a_model_type_transforms_its_logits_though_its_config_is_silent(
    model_type: str, folder: Path
) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError, match=SILENT[model_type]):
        check_logits(folder, role="student")


def test_a_model_type_whose_config_switches_the_cap_off_is_taken(folder: Path) -> None:
    path = folder / "config.json"
    text = path.read_text().replace('"qwen3"', '"gemma2"')
    path.write_text(text.replace("{", '{"final_logit_softcapping": null,', 1))
    check_logits(folder, role="student")


def test_a_head_with_a_bias_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "phi"
    AutoModelForCausalLM.from_config(PhiConfig(**SIZES)).save_pretrained(folder)
    with pytest.raises(UserError, match=r"teacher: .* adds a bias \(lm_head\.bias\)"):
        check_logits(folder, role="teacher")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.bias"]
    save_file(tensors, folder / "model.safetensors")
    check_logits(folder, role="teacher")
