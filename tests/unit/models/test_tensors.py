"""Single tensors out of a folder, as the loaded model would have them."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from topd_ray.errors import UserError
from topd_ray.models.tensors import input_embedding, load_tensor, output_head


def test_embedding_and_head_are_those_of_the_loaded_model(
    teacher_folder: Path, student_folder: Path
) -> None:
    for folder in (teacher_folder, student_folder):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(input_embedding(folder), model.get_input_embeddings().weight)
        assert torch.equal(output_head(folder), model.get_output_embeddings().weight)


def test_only_an_untied_model_has_a_head_of_its_own(
    teacher_folder: Path, student_folder: Path
) -> None:
    assert not torch.equal(output_head(teacher_folder), input_embedding(teacher_folder))
    assert torch.equal(output_head(student_folder), input_embedding(student_folder))


def test_the_stored_dtype_is_kept_and_the_first_name_present_wins(
    student_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {n: t.to(torch.bfloat16) for n, t in tensors.items()},
        folder / "model.safetensors",
    )
    norm = load_tensor(
        folder, "none.weight", "model.norm.weight", "model.embed_tokens.weight"
    )
    assert norm.shape == (32,)
    assert norm.dtype == torch.bfloat16


def test_an_absent_tensor_is_named_with_its_folder(student_folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"holds no tensor a\.weight or b\.weight"
    ) as caught:
        load_tensor(student_folder, "a.weight", "b.weight")
    assert str(student_folder) in str(caught.value)
