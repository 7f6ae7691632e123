"""Tensors that do not fit their config.json are refused or left out, by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from tests.tiny import VOCAB, make_experts
from tests.unit.models.edits import add_tensors, drop_tensors, edit_json, shard
from topd_ray.errors import UserError
from topd_ray.learner.model import load_student
from topd_ray.models.architecture import (
    check_names,
    check_tensors,
    joins_weights,
    load_causal_lm,
    weight_shapes,
)

MISSING = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experts(tmp_path_factory.mktemp("experts"))


def refused(folder: Path, message: str, role: str = "teacher") -> None:
    with pytest.raises(UserError, match=rf"^{role}: .*{message}"):
        check_tensors(folder, role=role)


def test_whole_folders_give_no_note(
    student_folder: Path, teacher_folder: Path, experts: Path
) -> None:
    for folder in (student_folder, teacher_folder, experts):
        assert check_tensors(folder, role="student") == []


@pytest.mark.parametrize("name", [MISSING, EMBEDDING, "model.norm.weight"])
def test_a_missing_tensor_is_refused_by_name(name: str, folder: Path) -> None:
    drop_tensors(folder, name)
    refused(folder, f"its weights lack {name}")
    if name != EMBEDDING:
        with pytest.raises(UserError, match=f"its weights lack {name}"):
            load_causal_lm(folder, dtype=torch.float32)


def test_a_missing_tensor_of_a_sharded_folder_is_refused_by_name(folder: Path) -> None:
    drop_tensors(folder, MISSING)
    shard(folder)
    refused(folder, f"its weights lack {MISSING}")


def test_a_missing_head_is_refused_where_the_config_unties_it(folder: Path) -> None:
    edit_json("config.json", tie_word_embeddings=False)(folder)
    refused(folder, "its weights lack lm_head.weight")


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    folder = make_experts(tmp_path)
    drop_tensors(folder, "model.layers.1.mlp.experts.2.down_proj.weight")
    refused(folder, r"3 tensors that make up model\.layers\.1\.mlp\.experts\.down_proj")


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(folder: Path) -> None:
    add_tensors(folder, {MISSING: torch.zeros(8, 32)})
    refused(folder, rf"{MISSING} has shape \[8, 32\], .* asks for \[64, 32\]")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "score.weight",
        "model.layers.2.mlp.up_proj.weight",
    ],
)
def test_a_tensor_that_the_model_has_no_place_for_is_refused(
    name: str, folder: Path
) -> None:
    add_tensors(folder, {name: torch.zeros(4, 4)})
    refused(folder, f"its weights hold {name}")


def test_tables_and_stray_files_are_left_out_and_named(folder: Path) -> None:
    whole = weight_shapes(folder)
    table = "model.layers.0.self_attn.rotary_emb.inv_freq"
    add_tensors(folder, {table: torch.ones(16)})
    save_file({"layers.0.wq": torch.zeros(1)}, folder / "consolidated.safetensors")
    stray, note = check_tensors(folder, role="student")
    assert stray.startswith("student: consolidated.safetensors beside")
    assert note.startswith(f"student: {table} in its weights is a table")
    assert weight_shapes(folder) == whole


def test_a_head_that_is_a_copy_of_the_embedding_is_left_out(folder: Path) -> None:
    whole = weight_shapes(folder)
    embedding = load_file(folder / "model.safetensors")[EMBEDDING]
    add_tensors(folder, {"lm_head.weight": embedding.clone()})
    (note,) = check_tensors(folder, role="student")
    assert note == "student: lm_head.weight is a copy of the embedding and is left out"
    assert weight_shapes(folder) == whole
    student = load_student(folder, dtype=torch.float32, gradient_checkpointing=False)
    assert "lm_head.weight" not in dict(student.named_parameters())


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(
    folder: Path,
) -> None:
    head = load_file(folder / "model.safetensors")[EMBEDDING].clone()
    head[17, 3] += 1e-3
    add_tensors(folder, {"lm_head.weight": head})
    refused(folder, r"no copy of .* \(first in row 17\); set tie_word_embeddings to")
    edit_json("config.json", tie_word_embeddings=False)(folder)
    assert check_tensors(folder, role="student") == []


def test_a_model_whose_head_has_another_name_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=len(VOCAB), n_embd=32, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    refused(tmp_path, "its embedding is not called model.embed_tokens.weight")


def test_an_unknown_kind_of_model_is_one_line(folder: Path) -> None:
    edit_json("config.json", model_type="no-such-model")(folder)
    refused(folder, "transformers makes no causal language model of it")


def test_a_quantized_model_is_not_compared_and_the_note_says_so(folder: Path) -> None:
    edit_json("config.json", quantization_config={"quant_method": "fp8"})(folder)
    (note,) = check_tensors(folder, role="teacher")
    assert note.startswith("teacher: quantized")
    with pytest.raises(UserError, match=r"^learner\.model: .* is quantized"):
        check_names(folder, field="learner.model")


def test_a_student_with_experts_is_saved_under_the_names_of_its_files(
    experts: Path,
) -> None:
    check_names(experts, field="learner.model")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert weight_shapes(experts)[name] == (16, 32)
    assert joins_weights(experts)
    assert (
        weight_shapes(experts).keys() == load_file(experts / "model.safetensors").keys()
    )


def test_a_dense_student_keeps_its_names(
    student_folder: Path, teacher_folder: Path
) -> None:
    for folder in (student_folder, teacher_folder):
        check_names(folder, field="learner.model")
