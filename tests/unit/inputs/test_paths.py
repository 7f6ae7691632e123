"""Paths of a config: local ones become absolute, names stay names."""

from pathlib import Path

import pytest

from topd_ray.config import Config, parse_config
from topd_ray.errors import UserError
from topd_ray.inputs.paths import refuse_passing_folder, with_absolute_paths


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two model folders, two data files and a forms file."""
    for folder in ("student", "models/teacher"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("prompts.jsonl", "heldout.jsonl", "forms.yaml"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(*, forms: str, student: str, teacher: str | None) -> Config:
    source = "model" if teacher else "student"
    return parse_config(
        {
            "run": {"method": "opd" if teacher else "opsd"},
            "prompts": {"path": "prompts.jsonl", "forms": forms},
            "teacher": {"model": teacher, "source": source},
            "learner": {"model": student},
            "evaluation": {"path": "heldout.jsonl"},
        },
        source="test",
    )


def test_every_local_path_is_absolute_wherever_an_actor_works(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(forms="forms.yaml", student="student", teacher="models/teacher")
    absolute = with_absolute_paths(config)
    monkeypatch.chdir("/")
    paths = {
        "student": absolute.learner.model,
        "models/teacher": absolute.teacher.model,
        "prompts.jsonl": absolute.prompts.path,
        "forms.yaml": absolute.prompts.forms,
        "heldout.jsonl": absolute.evaluation.path,
    }
    assert paths == {name: str(here / name) for name in paths}
    assert with_absolute_paths(absolute) == absolute


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("forms", ["math", "code"])
def test_hub_names_and_built_in_forms_stay_as_they_are(forms: str) -> None:
    Path(forms).touch()  # a file of that name is not read either
    config = config_of(forms=forms, student="acme/tiny", teacher="acme/teacher")
    absolute = with_absolute_paths(config)
    assert absolute.learner == config.learner
    assert absolute.teacher == config.teacher
    assert absolute.prompts.forms == forms


@pytest.mark.usefixtures("here")
def test_a_path_that_is_missing_keeps_the_name_that_the_user_gave() -> None:
    config = config_of(forms="no.yaml", student="./nowhere", teacher="acme/teacher")
    absolute = with_absolute_paths(config)
    assert absolute.learner.model == "./nowhere"
    assert absolute.prompts.forms == "no.yaml"


def test_a_student_that_teaches_itself_still_has_no_teacher_model(here: Path) -> None:
    config = config_of(forms="math", student="student", teacher=None)
    absolute = with_absolute_paths(config)
    assert absolute.teacher.model is None
    assert absolute.teacher_model == str(here / "student")


def test_the_home_of_the_user_is_resolved(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    config = config_of(forms="math", student="~/student", teacher="acme/teacher")
    assert with_absolute_paths(config).learner.model == str(here / "student")


def test_a_submitted_job_needs_a_run_root_that_outlives_its_working_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(forms="math", student="student", teacher="models/teacher")
    refuse_passing_folder(config)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"run\.root=runs in a submitted job.*absolute"):
        refuse_passing_folder(config)
    run = config.run.model_copy(update={"root": str(here / "runs")})
    refuse_passing_folder(config.model_copy(update={"run": run}))
