"""Preflight: a model that a run cannot use is refused in the role that forbids it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from topd_ray.config import Config, parse_config
from topd_ray.errors import UserError
from topd_ray.inputs.models import check_models, check_what_is_here


@pytest.fixture
def student(student_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(student_folder, tmp_path / "student")


@pytest.fixture
def teacher(teacher_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(teacher_folder, tmp_path / "teacher")


def config_of(tmp_path: Path, **sections: dict[str, Any]) -> Config:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "w1", "reference": "w2"}\n')
    values: dict[str, Any] = {
        "prompts": {
            "path": str(prompts),
            "max_tokens": 32,
            "max_reference_tokens": 16,
            "max_form_tokens": 16,
        },
        "rollout": {"max_response_tokens": 100},
    }
    return parse_config(values | sections, source="test")


def with_experts(folder: Path) -> None:
    """Write the names of a mixture of experts into the weights."""
    tensors = load_file(folder / "model.safetensors")
    for expert in range(2):
        name = f"model.layers.0.mlp.experts.{expert}.gate_proj.weight"
        tensors[name] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors")


def with_soft_cap(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["final_logit_softcapping"] = 30.0
    (folder / "config.json").write_text(json.dumps(config))


def refused(config: Config, message: str) -> None:
    for check in (check_models, check_what_is_here):
        with pytest.raises(UserError, match=message):
            check(config)


def test_models_that_fit_are_returned(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    config = config_of(
        tmp_path, learner={"model": str(student)}, teacher={"model": str(teacher)}
    )
    assert check_models(config) == (student, teacher)
    assert check_what_is_here(config) == []


def test_a_soft_cap_is_refused_on_either_side(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    config = config_of(
        tmp_path, learner={"model": str(student)}, teacher={"model": str(teacher)}
    )
    with_soft_cap(teacher)
    refused(config, rf"^teacher: {teacher}: .*final_logit_softcapping=30")
    with_soft_cap(student)
    refused(config, rf"^student: {student}: .*final_logit_softcapping=30")


def test_experts_are_refused_in_the_student_alone(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    config = config_of(
        tmp_path, learner={"model": str(student)}, teacher={"model": str(teacher)}
    )
    with_experts(teacher)
    assert check_models(config) == (student, teacher)
    with_experts(student)
    refused(config, rf"^learner\.model: {student} is a mixture of experts")


@pytest.mark.parametrize("follow_every", [0, 10])
def test_a_student_with_experts_cannot_teach_itself_either(
    follow_every: int, student: Path, tmp_path: Path
) -> None:
    config = config_of(
        tmp_path,
        run={"method": "opsd"},
        learner={"model": str(student)},
        teacher={"source": "student", "follow_every": follow_every},
    )
    with_experts(student)
    refused(config, r"^learner\.model: .* mixture of experts")


def test_a_revision_of_a_local_folder_is_refused(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    config = config_of(
        tmp_path,
        learner={"model": str(student), "revision": "v1"},
        teacher={"model": str(teacher)},
    )
    refused(config, r"revision=v1 has no effect on a folder of this machine")
