"""What a user's mistake gets: one line that names it, exit code 2, and never a
traceback.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.runs import ROOT, topd, topd_process
from topd_ray.config import load_config, parse_config
from topd_ray.errors import UserError
from topd_ray.inputs.models import check_what_is_here
from topd_ray.records.run_folder import RunFolder


def write_config(folder: Path, student: Path, teacher: Path, **sections: Any) -> Path:
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        prompts.write_text(json.dumps({"prompt": "w1 w2", "answer": "1"}) + "\n")
    values: dict[str, Any] = {
        "run": {"root": str(folder / "runs")},
        "prompts": {"path": str(prompts), "max_tokens": 32},
        "rollout": {"max_response_tokens": 100},
        "teacher": {"model": str(teacher)},
        "learner": {"model": str(student)},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_config_in_the_repository_is_sound(file: Path) -> None:
    done = topd("check", file)
    assert done.code == 0, done.output
    assert "the config is sound" in done.output


@pytest.mark.parametrize(
    "file",
    [
        *sorted((ROOT / "configs" / "toy").glob("*.yaml")),
        *sorted((ROOT / "configs" / "decisions").glob("*.yaml")),
    ],
    ids=lambda p: p.name,
)
def test_every_objective_and_decision_has_a_config_that_fits_the_toy_world(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(file, ["prompts.path=topd_ray/toy/world/train.jsonl"])
    assert check_what_is_here(config) == []
    assert config.run.name == f"toy-{file.stem}"


def test_the_config_of_stage_1_says_what_has_to_be_generated_first() -> None:
    done = topd("check", "configs/toy/kd.yaml", "prompts.path=nowhere.jsonl")
    assert done.code == 2
    assert (
        "nowhere.jsonl: no such file or folder; `topd generate` writes" in done.output
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["learner.lrr=1"], "learner.lrr: unknown key (value 1)"),
        (["learner.lr=fast"], "learner.lr: Input should be a valid number"),
        (
            ["learner.zero_stage=4"],
            "learner.zero_stage: Input should be less than or equal to 3",
        ),
        (["probe.engine.max_model_len=100"], "prompt 32 + response 100"),
        (
            ["candidates.min_window=60"],
            "candidates.min_window=60 exceeds probe.window=50",
        ),
        (
            ["windows.divergence.rule=absolute"],
            "threshold is missing: rule=absolute needs one",
        ),
        (["rollout.engine.tensor_parallel=2"], "set gpus to 2"),
        (["nonsense"], "override 'nonsense': expected section.key=value"),
        (["prompts.path=nowhere.jsonl"], "prompts.path=nowhere.jsonl: no such file"),
        (["teacher.model=./nowhere"], "teacher.model=./nowhere: no such folder"),
        (["rollout.max_response_tokens=9000"], "512"),
    ],
)
def test_an_impossible_config_is_refused_by_name(
    tmp_path: Path,
    student_folder: Path,
    teacher_folder: Path,
    overrides: list[str],
    expected: str,
) -> None:
    config = write_config(tmp_path, student_folder, teacher_folder)
    done = topd("check", config, *overrides)
    assert done.code == 2, done.output
    assert expected in " ".join(done.output.split())
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "prompts.jsonl"),
        ('{"prompt": "w1"}\n{"prompt": \n', "prompts.jsonl, line 2"),
        ('{"text": "w1"}\n', "prompts.jsonl, line 1"),
        ('{"prompt": ""}\n', "all 1 prompts were dropped"),
    ],
)
def test_bad_prompts_are_refused_before_anything_starts(
    tmp_path: Path,
    student_folder: Path,
    teacher_folder: Path,
    lines: str,
    expected: str,
) -> None:
    (tmp_path / "prompts.jsonl").write_text(lines)
    config = write_config(tmp_path, student_folder, teacher_folder)
    done = topd("train", config)
    assert done.code == 2, done.output
    assert expected in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert not (tmp_path / "runs").exists()


def test_a_root_that_cannot_hold_a_run_folder_is_refused_by_name(
    tmp_path: Path,
) -> None:
    root = tmp_path / "file"
    root.write_text("no folder")
    values = {
        "run": {"root": str(root), "name": "r"},
        "prompts": {"path": "p"},
        "teacher": {"model": "t"},
        "learner": {"model": "s"},
    }
    with pytest.raises(UserError, match=r"run\.root=.*file: no run folder can be"):
        RunFolder.create(parse_config(values, source="test"))


def test_missing_things_are_named(tmp_path: Path) -> None:
    for args in (("check", "nowhere.yaml"), ("resume", tmp_path), ("eval", tmp_path)):
        done = topd_process(*args)
        assert done.code == 2, done.output
        assert str(args[1]) in done.output.replace("\n", "")
        assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("args", "allowed"),
    [
        (["--help"], set()),
        (["check", "configs/qwen3-30b-a3b-to-4b-8xh100.yaml"], set()),
        # Folders that are here are compared with the models of transformers.
        (["check", "configs/local-toy.yaml"], {"torch", "transformers"}),
    ],
)
def test_the_light_half_loads_neither_torch_nor_ray(
    args: list[str], allowed: set[str]
) -> None:
    heavy = {"torch", "ray", "transformers", "vllm", "deepspeed"} - allowed
    code = (
        f"import sys, topd_ray.cli\ntry: topd_ray.cli.app({args!r})\nexcept SystemExit:"
        f" pass\nheavy = {heavy!r} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_stdout_goes_to_a_program_or_to_nothing_not_to_both(tmp_path: Path) -> None:
    for args in (("train", "configs/local-toy.yaml"), ("resume", tmp_path)):
        done = topd(*args, "--quiet", "--json")
        assert done.code == 2, done.output
        assert "--quiet with --json" in done.output


def test_a_missing_tracker_leaves_no_folder(
    tmp_path: Path,
    student_folder: Path,
    teacher_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config = write_config(tmp_path, student_folder, teacher_folder)
    done = topd("train", config, "records.trackers=[tensorboard,mlflow]")
    assert done.code == 2, done.output
    assert "the package mlflow is not installed" in " ".join(done.output.split())
    assert not (tmp_path / "runs").exists()
