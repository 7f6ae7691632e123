import json
import re
import shutil
from dataclasses import asdict, replace
from random import Random
from statistics import mean

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from topd_ray.errors import UserError
from topd_ray.toy import SHIPPED_WORLD, WORLDS, WorldRecipe, verify_world
from topd_ray.toy.accuracy import boxed_answer, solved_greedily
from topd_ray.toy.build import build_world, extend_world
from topd_ray.toy.drawing import split_of
from topd_ray.toy.examples import draw_user_message
from topd_ray.toy.problems import solve_value
from topd_ray.toy.user_messages import FORMS
from topd_ray.toy.wording import question

COUNTS = {"train": 4000, "dev": 500, "heldout": 1000}
STUDENTS = ("student", "student-1", "student-2", "student-3", "student-4")


def lines(name, world=SHIPPED_WORLD):
    return [json.loads(line) for line in (world / name).read_text().splitlines()]


def expression_of(prompt):
    (message,) = prompt["messages"]
    asked = re.fullmatch(r"what is (.*) modulo 10 \?", message["content"])
    return tuple(asked[1].split())


@pytest.fixture
def copied_world(tmp_path):
    return shutil.copytree(SHIPPED_WORLD, tmp_path / "world")


def small_recipe(*, num_students=1):
    recipe = WorldRecipe()
    tiny = {"layers": 1, "hidden": 32, "heads": 1, "feed_forward": 32, "steps": 2}

    def small(speaker):
        lessons = tuple(replace(lesson, batch=2) for lesson in speaker.lessons)
        return replace(speaker, **tiny, lessons=lessons)

    return replace(
        recipe,
        num_train=20,
        num_dev=10,
        num_held_out=10,
        num_students=num_students,
        teacher=small(recipe.teacher),
        student=small(recipe.student),
    )


def test_the_shipped_world_verifies_its_checksums():
    verify_world(SHIPPED_WORLD)


def test_a_flipped_byte_in_the_weights_is_refused(copied_world):
    weights = copied_world / "student" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"student/model\.safetensors: sha256"):
        verify_world(copied_world)


def test_a_lost_file_and_a_stray_one_are_refused(copied_world):
    (copied_world / "notes.txt").write_text("stray")
    with pytest.raises(UserError, match="nothing of it"):
        verify_world(copied_world)
    (copied_world / "notes.txt").unlink()
    (copied_world / "heldout.jsonl").unlink()
    with pytest.raises(UserError, match="that of no file"):
        verify_world(copied_world)


def test_a_directory_without_a_recipe_is_no_world(tmp_path):
    with pytest.raises(UserError, match=r"recipe\.json is missing"):
        verify_world(tmp_path)


@pytest.mark.parametrize("split", COUNTS)
def test_every_split_holds_distinct_expressions_of_its_own(split):
    expressions = [expression_of(prompt) for prompt in lines(f"{split}.jsonl")]
    assert len(set(expressions)) == COUNTS[split]
    assert set(map(split_of, expressions)) == {split}


@pytest.mark.parametrize("split", COUNTS)
def test_every_prompt_has_its_own_id_the_right_answer_and_a_reference_that_reaches_it(
    split,
):
    prompts = lines(f"{split}.jsonl")
    assert len({prompt["prompt_id"] for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        expression = expression_of(prompt)
        assert prompt["answer"] == str(solve_value(expression))
        assert boxed_answer(prompt["reference"]) == solve_value(expression)
        assert prompt["messages"] == [{"role": "user", "content": question(expression)}]


def test_the_prompt_forms_are_written_as_yaml():
    assert yaml.safe_load((SHIPPED_WORLD / "forms.yaml").read_text()) == FORMS
    assert set(FORMS) == {"reference", "refine", "refine_reference"}


def test_every_text_of_the_shipped_world_is_in_the_vocabulary():
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_WORLD / "student")
    for prompt in lines("dev.jsonl"):
        for text in (
            prompt["messages"][0]["content"],
            prompt["reference"],
            *FORMS.values(),
        ):
            known = (
                text.replace("{problem}", "")
                .replace("{reference}", "")
                .replace("{attempt}", "")
            )
            assert tokenizer.unk_token_id not in tokenizer.encode(known)


@pytest.mark.parametrize("student", STUDENTS)
def test_teacher_and_students_share_the_tokenizer_byte_for_byte(student):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        teachers, students = (
            (SHIPPED_WORLD / who / name) for who in ("teacher", student)
        )
        assert teachers.read_bytes() == students.read_bytes()


def test_the_warm_starts_differ():
    assert (
        len(
            {
                (SHIPPED_WORLD / who / "model.safetensors").read_bytes()
                for who in STUDENTS
            }
        )
        == 5
    )


def test_the_shipped_world_is_small():
    sizes = [path.stat().st_size for path in SHIPPED_WORLD.rglob("*") if path.is_file()]
    assert sum(sizes) <= 12e6


def test_the_recorded_dev_accuracies_are_what_the_world_promises():
    on_dev = json.loads((SHIPPED_WORLD / "recipe.json").read_text())[
        "greedy_accuracy_dev"
    ]
    teacher = on_dev.pop("teacher")
    assert (
        min(teacher["plain"], teacher["refine"], teacher["refine, attempt wrong"])
        >= 0.95
    )
    assert set(on_dev) == set(STUDENTS)
    for student in on_dev.values():
        assert 0.25 <= student["plain"] <= 0.4
        assert student["reference"] >= 0.9


@pytest.mark.parametrize(
    ("who", "form", "least", "most"),
    [
        ("teacher", "plain", 0.9, 1.0),
        ("teacher", "refine", 0.9, 1.0),
        ("student", "plain", 0.15, 0.45),
        ("student", "reference", 0.85, 1.0),
    ],
)
def test_a_shipped_model_solves_about_as_many_dev_problems_as_recorded(
    who, form, least, most
):
    model = AutoModelForCausalLM.from_pretrained(
        SHIPPED_WORLD / who, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_WORLD / who)
    asked = [
        draw_user_message(expression_of(prompt), form, WorldRecipe(), Random(0))
        for prompt in lines("dev.jsonl")[:40]
    ]
    assert least <= mean(solved_greedily(model, tokenizer, asked)) <= most


@pytest.fixture(scope="module")
def built_world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("build") / "world"
    build_world(directory, seed=3, recipe=small_recipe(num_students=2))
    return directory


def test_a_small_world_is_built_whole_and_verifies(built_world):
    verify_world(built_world)
    assert [path.name for path in built_world.parent.iterdir()] == ["world"]
    record = json.loads((built_world / "recipe.json").read_text())
    assert record["seed"] == 3
    assert record["recipe"]["student"]["steps"] == 2
    assert set(record["greedy_accuracy_held_out"]) == {
        "teacher",
        "student",
        "student-1",
    }
    assert set(record["greedy_accuracy_dev"]["student"]) >= {"plain", "reference"}
    for split in COUNTS:
        assert len(lines(f"{split}.jsonl", built_world)) == (
            20 if split == "train" else 10
        )


def test_the_same_seed_builds_the_same_world_on_any_number_of_cores(
    built_world, tmp_path
):
    recipe = small_recipe(num_students=2)
    build_world(tmp_path / "again", seed=3, recipe=recipe, jobs=2)
    assert (tmp_path / "again" / "recipe.json").read_text() == (
        built_world / "recipe.json"
    ).read_text()


def test_a_build_replaces_a_world(built_world, tmp_path):
    target = shutil.copytree(built_world, tmp_path / "world")
    build_world(target, seed=2, recipe=small_recipe())
    verify_world(target)
    assert json.loads((target / "recipe.json").read_text())["seed"] == 2


def test_a_build_keeps_the_models_of_an_earlier_one(built_world, tmp_path):
    folder = shutil.copytree(built_world, tmp_path / "world")
    record = json.loads((folder / "recipe.json").read_text())
    # No training would measure this number.
    record["greedy_accuracy_held_out"]["teacher"] = 0.123
    (folder / "recipe.json").write_text(json.dumps(record))
    build_world(folder, seed=3, recipe=small_recipe(num_students=1))
    verify_world(folder)
    fewer = json.loads((folder / "recipe.json").read_text())
    assert fewer["greedy_accuracy_held_out"]["teacher"] == 0.123
    assert set(fewer["greedy_accuracy_dev"]) == {"teacher", "student"}
    build_world(folder, seed=3, recipe=small_recipe(num_students=2))
    more = json.loads((folder / "recipe.json").read_text())
    assert more["greedy_accuracy_held_out"]["teacher"] == 0.123
    assert (
        more["sha256"]
        == json.loads((built_world / "recipe.json").read_text())["sha256"]
    )


def test_a_build_does_not_go_on_with_a_world_that_was_changed(built_world, tmp_path):
    folder = shutil.copytree(built_world, tmp_path / "world")
    (folder / "teacher" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json"):
        build_world(folder, seed=3, recipe=small_recipe(num_students=1))


def test_a_build_never_replaces_another_directory(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is no toy world"):
        build_world(tmp_path, recipe=small_recipe())
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_an_extension_goes_on_where_the_world_ends(built_world, tmp_path):
    extend_world(
        tmp_path / "more",
        num_students=1,
        num_held_out=5,
        seed=3,
        recipe=small_recipe(num_students=1),
    )
    verify_world(tmp_path / "more")
    build_world(
        tmp_path / "longer",
        seed=3,
        recipe=replace(small_recipe(num_students=0), num_held_out=15),
    )
    assert lines("heldout.jsonl", tmp_path / "longer") == [
        *lines("heldout.jsonl", built_world),
        *lines("heldout.jsonl", tmp_path / "more"),
    ]
    weights = "student-1/model.safetensors"
    assert (tmp_path / "more" / weights).read_bytes() == (
        built_world / weights
    ).read_bytes()


def test_an_extension_keeps_the_students_that_are_there(tmp_path):
    folder = tmp_path / "more"
    given = {"num_held_out": 5, "seed": 3, "recipe": small_recipe(num_students=1)}
    extend_world(folder, num_students=1, **given)
    first = json.loads((folder / "recipe.json").read_text())
    # No training would measure this number.
    first["greedy_accuracy_held_out"]["student-1"] = 0.123
    (folder / "recipe.json").write_text(json.dumps(first))
    extend_world(folder, num_students=2, **given)
    verify_world(folder)
    second = json.loads((folder / "recipe.json").read_text())
    assert second["greedy_accuracy_held_out"]["student-1"] == 0.123
    assert set(second["greedy_accuracy_dev"]) == {"student-1", "student-2"}
    extend_world(folder, num_students=1, **given | {"num_held_out": 6})
    other = json.loads((folder / "recipe.json").read_text())
    assert other["greedy_accuracy_held_out"]["student-1"] != 0.123


def test_the_worlds_differ_in_what_they_are_for():
    plain = WORLDS["shipped"]
    teacher = WORLDS["no-recovery"].teacher
    assert set(asdict(teacher.manner.slips).values()) == {0.0}
    assert replace(teacher, manner=plain.teacher.manner) == plain.teacher
    assert WORLDS["no-recovery"].student == plain.student
    small = WORLDS["small"]
    assert small.student.layers < plain.student.layers
    assert small.shape.max_operands > plain.shape.max_operands
    assert small.teacher == plain.teacher
