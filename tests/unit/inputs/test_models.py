"""Preflight: a model that a run cannot use is refused in the role that forbids it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import make_experts
from tests.unit.models.edits import add_tensors, drop_tensors
from topd_ray.config import Config, parse_config
from topd_ray.errors import UserError
from topd_ray.inputs.models import check_models, check_what_is_here
from topd_ray.inputs.run_inputs import check_inputs


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
    assert check_models(config) == (student, teacher, [])
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


def test_adapters_that_match_nothing_are_refused(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    lora = {"targets": ["q_proj", "c_attn"], "rank": 2}
    config = config_of(
        tmp_path,
        learner={"model": str(student), "lora": lora},
        teacher={"model": str(teacher)},
    )
    refused(config, rf"^learner\.lora\.targets: c_attn names no .* of {student};")


def test_heads_that_cannot_be_dealt_to_ranks_are_refused(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    config = config_of(
        tmp_path,
        learner={"model": str(student), "num_ranks": 3, "sequence_parallel": 3},
        teacher={"model": str(teacher)},
    )
    refused(config, r"^learner\.sequence_parallel=3: the 2 attention heads")


def test_experts_can_be_a_teacher_and_a_student_of_engines_that_reload_them(
    student: Path, tmp_path: Path
) -> None:
    experts = make_experts(tmp_path / "experts")
    config = config_of(
        tmp_path, learner={"model": str(student)}, teacher={"model": str(experts)}
    )
    assert check_models(config) == (student, experts, [])
    trained = {"learner": {"model": str(experts)}, "teacher": {"model": str(student)}}
    refused(
        config_of(tmp_path, **trained),
        rf"^learner\.model: {experts} is a mixture of experts, and vLLM on a CPU",
    )
    rollout = {"max_response_tokens": 100, "engine": {"backend": "hf"}}
    config = config_of(tmp_path, **trained, rollout=rollout)
    assert check_models(config) == (experts, student, [])


@pytest.mark.parametrize("field", ["rollout", "teacher", "probe"])
def test_an_engine_that_cannot_be_split_is_refused_before_it_starts(
    field: str, student: Path, teacher: Path, tmp_path: Path
) -> None:
    sections: dict[str, dict[str, Any]] = {
        "learner": {"model": str(student)},
        "teacher": {"model": str(teacher)},
        "rollout": {"max_response_tokens": 100},
        "probe": {},
    }
    sections[field]["engine"] = {"tensor_parallel": 3, "gpus": 3}
    config = config_of(tmp_path, **sections)
    refused(config, rf"^{field}\.engine\.tensor_parallel=3 does not divide num_att")


@pytest.mark.parametrize("follow_every", [0, 10])
def test_a_student_with_experts_cannot_teach_itself_either(
    follow_every: int, tmp_path: Path
) -> None:
    config = config_of(
        tmp_path,
        run={"method": "opsd"},
        learner={"model": str(make_experts(tmp_path / "experts"))},
        teacher={"source": "student", "follow_every": follow_every},
    )
    refused(config, r"^learner\.model: .* mixture of experts")


def test_what_is_left_out_of_a_folder_is_said_once(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    save_file(
        {"tok_embeddings.weight": torch.zeros(1)}, student / "consolidated.safetensors"
    )
    add_tensors(
        teacher, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    )
    config = config_of(
        tmp_path, learner={"model": str(student)}, teacher={"model": str(teacher)}
    )
    notes = check_what_is_here(config)
    assert [note.split()[:2] for note in notes] == [
        ["student:", "consolidated.safetensors"],
        ["teacher:", "model.layers.0.self_attn.rotary_emb.inv_freq"],
    ]
    assert check_models(config).notes == notes


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_missing_tensor_is_refused_in_either_role(
    role: str, student: Path, teacher: Path, tmp_path: Path
) -> None:
    config = config_of(
        tmp_path, learner={"model": str(student)}, teacher={"model": str(teacher)}
    )
    folder = student if role == "student" else teacher
    name = "model.layers.1.mlp.up_proj.weight"
    drop_tensors(folder, name)
    refused(config, rf"^{role}: {folder}: its weights lack {name}, which its config")


def test_a_revision_of_a_local_folder_is_refused(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    config = config_of(
        tmp_path,
        learner={"model": str(student), "revision": "v1"},
        teacher={"model": str(teacher)},
    )
    refused(config, r"revision=v1 has no effect on a folder of this machine")


def test_check_prints_where_a_response_ends_and_judges_the_prompts(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    for folder in (student, teacher):
        for name in ("config.json", "generation_config.json"):
            values = json.loads((folder / name).read_text()) | {"eos_token_id": 0}
            (folder / name).write_text(json.dumps(values))
    config = config_of(
        tmp_path, learner={"model": str(student)}, teacher={"model": str(teacher)}
    )
    rows = [{"prompt": "w1"}, {"prompt": "<|im_end|>", "prompt_id": "bad"}]
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = check_inputs(config)
    assert (
        "a response ends at <|im_end|> (2: the chat template, tokenizer_config.json);"
        " <|endoftext|> (0: generation_config.json)"
    ) in notes
    (counted,) = [note for note in notes if "prompts (" in note]
    assert counted.startswith("1 prompts (1 dropped: 1 control_token, e.g. 'bad', ")
    data.write_text('{"text": "w1"}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl, line 1: expected"):
        check_inputs(config)
