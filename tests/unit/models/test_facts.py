"""Facts of a model folder: each by one rule, the same for preflight and engines."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.tiny import VOCAB
from tests.unit.models.edits import Edit, edit_json, shard
from topd_ray.errors import UserError
from topd_ray.models.architecture import weight_shapes
from topd_ray.models.facts import check_context, read_facts
from topd_ray.models.headers import weight_files


def test_facts_agree_with_the_model(teacher_folder: Path, student_folder: Path) -> None:
    for path, hidden_size, tied in (
        (teacher_folder, 64, False),
        (student_folder, 32, True),
    ):
        facts = read_facts(path)
        tensors = load_file(path / "model.safetensors")
        assert facts.num_parameters == sum(
            tensor.numel() for tensor in tensors.values()
        )
        assert facts.vocab_size == len(VOCAB)
        assert (facts.hidden_size, facts.layers, facts.tied) == (hidden_size, 2, tied)
        assert (facts.max_position_embeddings, facts.dtype) == (512, "float32")


def test_a_tied_head_that_was_saved_anyway_counts_once(folder: Path) -> None:
    before = read_facts(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert read_facts(folder) == before


def test_the_dtype_is_that_of_most_parameters(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    mixed = {n: t if "norm" in n else t.to(torch.bfloat16) for n, t in tensors.items()}
    save_file(mixed, folder / "model.safetensors")
    assert read_facts(folder).dtype == "bfloat16"


def test_the_weights_of_an_engine_are_those_of_the_index(folder: Path) -> None:
    whole = weight_shapes(folder)
    shard(folder)
    stray = {"layers.0.attention.wq.weight": torch.zeros(4, 4)}
    save_file(stray, folder / "consolidated.safetensors")
    assert weight_shapes(folder) == whole
    assert "consolidated.safetensors" not in {
        path.name for path in weight_files(folder)
    }


def test_a_stray_file_beside_a_single_file_is_no_weight(folder: Path) -> None:
    whole = weight_shapes(folder)
    stray = {"layers.0.attention.wq.weight": torch.zeros(4, 4)}
    save_file(stray, folder / "consolidated.safetensors")
    assert weight_shapes(folder) == whole


def test_the_weights_are_the_parameters_of_the_loaded_model(
    teacher_folder: Path, student_folder: Path
) -> None:
    for path in (teacher_folder, student_folder):
        model = AutoModelForCausalLM.from_pretrained(path)
        assert weight_shapes(path) == {
            name: tuple(parameter.shape) for name, parameter in model.named_parameters()
        }


def test_a_tied_head_that_was_saved_anyway_is_no_weight(folder: Path) -> None:
    before = weight_shapes(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert weight_shapes(folder) == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            edit_json("config.json", vocab_size="64"),
            "vocab_size='64': expected a whole number",
        ),
        (
            edit_json("config.json", hidden_size=None),
            "hidden_size=None: expected a whole number",
        ),
    ],
)
def test_a_config_that_lacks_a_fact_is_named(
    edit: Edit, message: str, folder: Path
) -> None:
    edit(folder)
    with pytest.raises(UserError, match=str(folder)) as caught:
        read_facts(folder)
    assert message in str(caught.value)


def test_a_context_that_is_too_short_names_both_numbers(folder: Path) -> None:
    check_context(read_facts(folder), 512, "student")
    with pytest.raises(
        UserError, match=r"student: max_position_embeddings=512 .* needs 513"
    ):
        check_context(read_facts(folder), 513, "student")
