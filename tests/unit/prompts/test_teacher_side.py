"""Student and teacher fit by what their templates render, not by their text."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.tiny import CHAT_TEMPLATE, VOCAB
from topd_ray.config import Config, parse_config
from topd_ray.errors import UserError
from topd_ray.inputs.prompts import load_source
from topd_ray.messages import Prompt

WITH_TOOLS = "{% if tools %}w9 {{ tools }}{% endif %}" + CHAT_TEMPLATE
WITH_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|> w5 <|im_end|> {% endif %}"
    + CHAT_TEMPLATE
)
THINKING = CHAT_TEMPLATE.replace(
    "{% endif %}", "{% if not enable_thinking %} w7{% endif %}{% endif %}"
)


@pytest.fixture
def teacher(teacher_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(teacher_folder, tmp_path / "teacher")


def config(tmp_path: Path, method: str = "opd", **teacher: Any) -> Config:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "1"}, {"prompt": "w2 3", "prompt_id": "second"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "run": {"method": method},
        "prompts": {"path": str(path), "max_tokens": 8, "max_form_tokens": 3},
        "teacher": {"model": "teacher"} | teacher,
        "learner": {"model": "student"},
    }
    return parse_config(values, source="test")


def load(config: Config, student: Path, teacher: Path) -> dict[str, Prompt]:
    source, _ = load_source(config, student=student, teacher=teacher)
    return {prompt.prompt_id: prompt for prompt in source.take(len(source))}


def words(ids: Any) -> str:
    return " ".join(VOCAB[token] for token in ids)


def test_templates_that_differ_where_no_prompt_goes_fit(
    student_folder: Path, teacher: Path, tmp_path: Path
) -> None:
    """Qwen2.5-Coder's 0.5B and 1.5B differ so, in the branch for tools."""
    (teacher / "chat_template.jinja").write_text(WITH_TOOLS)
    for prompt in load(config(tmp_path), student_folder, teacher).values():
        assert prompt.teacher_ids_P is None


@pytest.mark.parametrize("method", ["opd", "trd"])
def test_a_difference_is_shown_on_the_prompt_where_it_occurs(
    method: str, student_folder: Path, teacher: Path, tmp_path: Path
) -> None:
    only_second = CHAT_TEMPLATE.replace(
        "{{ m.content }}", "{{ m.content | replace('w2', 'w3') }}"
    )
    (teacher / "chat_template.jinja").write_text(only_second)
    with pytest.raises(UserError) as caught:
        load(config(tmp_path, method), student_folder, teacher)
    message = str(caught.value)
    assert "prompt 'second': student" in message
    assert "from token 2 on" in message
    assert "user w2 3 <|im_end|>" in message
    assert "user w3 3 <|im_end|>" in message
    assert "set teacher.template=own" in message


def test_the_teacher_reads_its_own_template_where_the_config_says_so(
    student_folder: Path, teacher: Path, tmp_path: Path
) -> None:
    (teacher / "chat_template.jinja").write_text(WITH_SYSTEM)
    prompts = load(config(tmp_path, template="own"), student_folder, teacher)
    second = prompts["second"]
    assert words(second.token_ids_P).startswith("<|im_start|> user w2 3")
    assert second.teacher_ids_P is not None
    assert words(second.teacher_ids_P).startswith(
        "<|im_start|> w5 <|im_end|> <|im_start|> user w2 3"
    )


def test_a_prompt_too_long_by_the_teachers_own_template_is_dropped(
    student_folder: Path, teacher: Path, tmp_path: Path
) -> None:
    longer = WITH_SYSTEM.replace(
        "w5", "w5 {% if 'w2' in messages[0].content %}1 2{% endif %}"
    )
    (teacher / "chat_template.jinja").write_text(longer)
    prompts = load(config(tmp_path, template="own"), student_folder, teacher)
    assert len(prompts) == 1
    assert "second" not in prompts


def test_the_student_template_serves_a_teacher_without_one(
    student_folder: Path, teacher: Path, tmp_path: Path
) -> None:
    (teacher / "chat_template.jinja").unlink()
    templates: tuple[Literal["same", "own"], ...] = ("same", "own")
    for template in templates:
        with pytest.raises(
            UserError, match=r"no chat template .*teacher\.template=stud"
        ):
            load(config(tmp_path, template=template), student_folder, teacher)
    prompts = load(config(tmp_path, template="student"), student_folder, teacher)
    assert [prompt.teacher_ids_P for prompt in prompts.values()] == [None, None]


def test_each_side_thinks_or_not_by_its_own_variables(
    student_folder: Path, teacher: Path, tmp_path: Path
) -> None:
    student = shutil.copytree(student_folder, tmp_path / "student")
    for folder in (student, teacher):
        (folder / "chat_template.jinja").write_text(THINKING)
    thinking = {"chat_template_kwargs": {"enable_thinking": True}, "template": "own"}
    prompt = load(config(tmp_path, **thinking), student, teacher)["second"]
    assert words(prompt.token_ids_P).endswith("assistant w7")
    assert prompt.teacher_ids_P is not None
    assert words(prompt.teacher_ids_P).endswith("assistant")


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            {"chat_template_kwargs": {"a": 1}},
            "teacher.chat_template_kwargs={'a': 1} with objective.context=plain",
        ),
        (
            {"template": "own", "chat_template_kwargs": {"tokenize": False}},
            "teacher.chat_template_kwargs sets tokenize",
        ),
    ],
)
def test_variables_without_effect_or_of_another_meaning_are_refused(
    teacher: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        config(tmp_path, **teacher)
    assert message in str(caught.value)
