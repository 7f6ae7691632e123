"""What a run's objective needs of its data is there before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import EOS_ID, VOCAB
from topd_ray.config import Config, parse_config
from topd_ray.errors import UserError
from topd_ray.inputs.prompts import load_source
from topd_ray.messages import Prompt

ROWS: list[dict[str, Any]] = [
    {"prompt_id": "bare", "prompt": "1"},
    {"prompt_id": "reference", "prompt": "1", "reference": "w1"},
    {"prompt_id": "response", "prompt": "1", "response": "w2"},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def forms(tmp_path: Path) -> Path:
    path = tmp_path / "forms.yaml"
    path.write_text(
        "reference: '{problem} w5 {reference}'\n"
        "refine: '{problem} w6 {attempt}'\n"
        "refine_reference: '{problem} {reference} {attempt}'\n"
    )
    return path


def config(path: Path, method: str, **sections: dict[str, Any]) -> Config:
    own = {"model": "teacher"} if method != "opsd" else {}
    values: dict[str, Any] = {
        "run": {"method": method},
        "prompts": {"path": str(path)},
        "rollout": {"max_response_tokens": 20},
        "teacher": own,
        "learner": {"model": "student"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return parse_config(values, source="test")


def load(config: Config, student: Path, teacher: Path) -> dict[str, Prompt]:
    source, dropped = load_source(config, student=student, teacher=teacher)
    prompts = {prompt.prompt_id: prompt for prompt in source.take(len(source))}
    assert len(prompts) + len(dropped) == len(ROWS)
    return prompts


@pytest.mark.parametrize("method", ["opd", "topd"])
def test_a_plain_teacher_reads_the_students_prompt_of_every_row(
    method: str, path: Path, student_folder: Path, teacher_folder: Path
) -> None:
    prompts = load(config(path, method), student_folder, teacher_folder)
    assert set(prompts) == {"bare", "reference", "response"}
    for prompt in prompts.values():
        assert prompt.teacher_ids_P is None
        assert prompt.response_ids_N is None


def test_kd_takes_the_rows_with_a_response(
    path: Path, student_folder: Path, teacher_folder: Path
) -> None:
    (prompt,) = load(config(path, "kd"), student_folder, teacher_folder).values()
    assert prompt.response_ids_N is not None
    assert prompt.response_ids_N.tolist() == [VOCAB.index("w2"), EOS_ID]


def test_opsd_takes_the_rows_with_a_reference_and_writes_it_into_the_teachers_prompt(
    path: Path, forms: Path, student_folder: Path
) -> None:
    opsd = config(path, "opsd", prompts={"forms": str(forms)})
    (prompt,) = load(opsd, student_folder, student_folder).values()
    assert prompt.teacher_ids_P is not None
    words = [VOCAB[one] for one in prompt.teacher_ids_P]
    assert words[2:5] == ["1", "w5", "w1"]
    assert prompt.teacher_ids_P.tolist() != prompt.token_ids_P.tolist()


def test_trd_takes_every_row_and_with_references_those_that_have_one(
    path: Path, student_folder: Path, teacher_folder: Path
) -> None:
    prompts = load(config(path, "trd"), student_folder, teacher_folder)
    assert set(prompts) == {"bare", "reference", "response"}
    both = config(path, "trd", objective={"context": "refine_reference"})
    prompts = load(both, student_folder, teacher_folder)
    assert [
        (one.prompt_id, one.reference, one.problem) for one in prompts.values()
    ] == [("reference", "w1", "1")]


def test_the_built_in_forms_leave_room_in_the_teachers_budget(
    path: Path, student_folder: Path
) -> None:
    for name in ("math", "code"):
        assert load(
            config(path, "opsd", prompts={"forms": name, "max_tokens": 8}),
            student_folder,
            student_folder,
        )


def test_data_without_any_response_is_refused_with_the_way_out(
    path: Path, student_folder: Path, teacher_folder: Path
) -> None:
    path.write_text('{"prompt": "1"}\n')
    with pytest.raises(
        UserError, match=r"no_response.*`topd generate CONFIG --out FILE`"
    ):
        load(config(path, "kd"), student_folder, teacher_folder)
