import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from topd_ray.errors import UserError
from topd_ray.toy import SHIPPED_WORLD, Recipe, verify_world
from topd_ray.toy.accuracy import greedy_accuracy
from topd_ray.toy.build import build_world
from topd_ray.toy.problems import is_held_out, solve_value
from topd_ray.toy.wording import question

MEBIBYTE = 2**20


def lines(name, world=SHIPPED_WORLD):
    return [json.loads(line) for line in (world / name).read_text().splitlines()]


def expression_of(prompt):
    (message,) = prompt["messages"]
    asked = re.fullmatch(r"what is (.*) modulo 10 \?", message["content"])
    return tuple(asked[1].split())


@pytest.fixture
def copied_world(tmp_path):
    return shutil.copytree(SHIPPED_WORLD, tmp_path / "world")


def small_recipe():
    recipe = Recipe()
    tiny = {"layers": 1, "hidden": 32, "heads": 1, "feed_forward": 32, "steps": 2, "batch": 4}
    return replace(
        recipe,
        num_train=20,
        num_held_out=10,
        teacher=replace(recipe.teacher, **tiny),
        student=replace(recipe.student, **tiny),
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


def test_no_held_out_expression_is_among_the_training_prompts():
    held_out = {expression_of(prompt) for prompt in lines("heldout.jsonl")}
    training = {expression_of(prompt) for prompt in lines("train.jsonl")}
    assert len(held_out) >= 1000
    assert len(training) >= 2000
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, training))


@pytest.mark.parametrize("name", ["train.jsonl", "heldout.jsonl"])
def test_every_prompt_has_its_own_id_and_the_right_answer(name):
    prompts = lines(name)
    assert len({prompt["prompt_id"] for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        expression = expression_of(prompt)
        assert prompt["answer"] == str(solve_value(expression))
        assert prompt["messages"] == [{"role": "user", "content": question(expression)}]


def test_teacher_and_student_share_the_tokenizer_byte_for_byte():
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        teacher, student = ((SHIPPED_WORLD / who / name) for who in ("teacher", "student"))
        assert teacher.read_bytes() == student.read_bytes()


def test_the_shipped_world_is_small():
    sizes = {path: path.stat().st_size for path in SHIPPED_WORLD.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 8 * MEBIBYTE
    assert sum(size for path, size in sizes.items() if path.suffix == ".safetensors") <= 6e6


def test_the_teacher_solves_what_the_student_often_gets_wrong():
    expressions = [expression_of(prompt) for prompt in lines("heldout.jsonl")[:60]]
    accuracy = {}
    for who in ("teacher", "student"):
        model = AutoModelForCausalLM.from_pretrained(SHIPPED_WORLD / who, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(SHIPPED_WORLD / who)
        accuracy[who] = greedy_accuracy(model, tokenizer, expressions)
    assert accuracy["teacher"] >= 0.93
    assert 0.2 <= accuracy["student"] <= 0.65


def test_a_small_world_is_built_whole_and_verifies(tmp_path):
    build_world(tmp_path / "world", seed=3, recipe=small_recipe())
    verify_world(tmp_path / "world")
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    record = json.loads((tmp_path / "world" / "recipe.json").read_text())
    assert record["seed"] == 3
    assert record["recipe"]["student"]["steps"] == 2
    assert set(record["greedy_accuracy_held_out"]) == {"teacher", "student"}
    assert len(lines("train.jsonl", tmp_path / "world")) == 20


def test_the_same_seed_builds_the_same_problems_and_weights(tmp_path):
    for name in ("first", "second"):
        build_world(tmp_path / name, seed=1, recipe=small_recipe())
    records = [
        json.loads((tmp_path / name / "recipe.json").read_text()) for name in ("first", "second")
    ]
    assert records[0] == records[1]


def test_a_build_replaces_a_world_but_never_another_directory(tmp_path):
    target = tmp_path / "world"
    build_world(target, seed=1, recipe=small_recipe())
    build_world(target, seed=2, recipe=small_recipe())
    assert json.loads((target / "recipe.json").read_text())["seed"] == 2
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is no toy world"):
        build_world(tmp_path, recipe=small_recipe())
    assert (tmp_path / "thesis.txt").read_text() == "precious"
