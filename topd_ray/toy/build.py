"""Build a world directory from a recipe: problems, forms, models, checksums."""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import compress, islice
from pathlib import Path
from random import Random
from statistics import mean
from types import MappingProxyType
from typing import Any

import torch
import transformers
import yaml
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from topd_ray.errors import UserError
from topd_ray.processes import process_pool
from topd_ray.seeds import derive_seed
from topd_ray.toy.accuracy import solved_greedily
from topd_ray.toy.checksums import RECIPE_FILE, checksums, verify_world
from topd_ray.toy.drawing import Split, distinct_expressions
from topd_ray.toy.examples import draw_user_message
from topd_ray.toy.problems import Expression, solve, solve_value
from topd_ray.toy.recipe import ModelRecipe, WorldRecipe
from topd_ray.toy.tokenizer import make_tokenizer
from topd_ray.toy.training import make_model, train
from topd_ray.toy.user_messages import FORMS, FORMS_FILE, Form
from topd_ray.toy.wording import TEACHER_WORDING, question, worked_solution

log = logging.getLogger(__name__)

Measured = tuple[dict[str, float], float]
"""Greedy accuracies of a model: on dev problems by form of prompt, on held-out ones."""
_Make = Callable[[str, ModelRecipe], Measured]


def build_world(
    directory: Path, *, seed: int = 0, recipe: WorldRecipe | None = None, jobs: int = 1
) -> None:
    """Make every file of a world, then replace `directory` in one move.

    Takes one to two core hours; `jobs` processes of one thread train a model each. A
    model that an earlier build of this seed and recipe has left in `directory` is not
    trained again, so a world can be built a few students at a time. Raises UserError if
    `directory` holds anything other than a world, or such a build that was changed.
    """
    recipe = recipe or WorldRecipe()
    speakers = {"teacher": recipe.teacher} | _students(
        recipe, range(recipe.num_students)
    )
    counts: dict[Split, int] = {
        "train": recipe.num_train,
        "dev": recipe.num_dev,
        "heldout": recipe.num_held_out,
    }
    problems = {
        split: _draw_problems(seed, recipe, split, counts[split]) for split in counts
    }
    with _staged(directory) as staged:
        for split, expressions in problems.items():
            _write_problems(staged / f"{split}.jsonl", split, expressions, seed)
        kept = _keep_speakers(directory, staged, seed, recipe, speakers)
        _make_speakers(staged, seed, recipe, speakers, problems, jobs, kept)


def extend_world(
    directory: Path,
    *,
    num_students: int,
    num_held_out: int,
    seed: int = 0,
    recipe: WorldRecipe | None = None,
    jobs: int = 1,
) -> None:
    """Make more students and more held-out problems of a world, in `directory`.

    They are the ones that the world of this seed and recipe would have gone on with:
    the same draws, behind its own. A student that an earlier extension has left in the
    folder, beside the same problems, is not trained again. Raises UserError as
    `build_world` does, and where a file of that extension was changed.
    """
    recipe = recipe or WorldRecipe()
    last = recipe.num_students + num_students
    speakers = _students(recipe, range(recipe.num_students, last))
    skipped = recipe.num_held_out
    held_out = _draw_problems(seed, recipe, "heldout", skipped + num_held_out)
    problems: dict[Split, list[Expression]] = {
        "dev": _draw_problems(seed, recipe, "dev", recipe.num_dev),
        "heldout": held_out[skipped:],
    }
    with _staged(directory) as staged:
        path = staged / "heldout.jsonl"
        _write_problems(path, "heldout", held_out, seed, skipped=skipped)
        kept = _keep_speakers(directory, staged, seed, recipe, speakers)
        _make_speakers(staged, seed, recipe, speakers, problems, jobs, kept)


def _keep_speakers(
    directory: Path, staged: Path, seed: int, recipe: WorldRecipe, names: Iterable[str]
) -> dict[str, Measured]:
    """Copy models that were made before; return what was measured of each.

    They are of use where seed, recipe and problems are the same; the number of students
    is no part of a student.
    """
    if not (directory / RECIPE_FILE).is_file():
        return {}
    record = json.loads((directory / RECIPE_FILE).read_text())
    count = {"num_students": recipe.num_students}
    made_by = (record["seed"], record["recipe"] | count)
    files = [file.name for file in staged.glob("*.jsonl")]
    if made_by != (seed, _plain(recipe)) or not all(
        (directory / file).is_file()
        and (directory / file).read_text() == (staged / file).read_text()
        for file in files
    ):
        return {}
    verify_world(directory)
    on_dev = record["greedy_accuracy_dev"]
    on_held_out = record["greedy_accuracy_held_out"]
    kept = [name for name in names if name in on_dev]
    for name in kept:
        log.info("keeping the %s of %s", name, directory)
        shutil.copytree(directory / name, staged / name)
    return {name: (on_dev[name], on_held_out[name]) for name in kept}


@contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `directory` when it is whole and verified."""
    _refuse_to_replace_anything_but_a_world(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".world-") as scratch:
        staged = Path(scratch) / "world"
        staged.mkdir()
        yield staged
        verify_world(staged)
        if directory.exists():
            directory.rename(Path(scratch) / "old")
        staged.rename(directory)


def _make_speakers(
    directory: Path,
    seed: int,
    recipe: WorldRecipe,
    speakers: Mapping[str, ModelRecipe],
    problems: Mapping[Split, list[Expression]],
    jobs: int,
    kept: Mapping[str, Measured] = MappingProxyType({}),
) -> None:
    """Write forms, models and, last, the recipe with all checksums."""
    (directory / FORMS_FILE).write_text(yaml.safe_dump(dict(FORMS), width=200))
    make = partial(_make_speaker, directory, seed, recipe, problems)
    missing = {name: one for name, one in speakers.items() if name not in kept}
    made = _in_processes(make, missing, jobs) if jobs > 1 else _here(make, missing)
    measured = {**kept, **dict(zip(missing, made, strict=True))}
    record = {
        "seed": seed,
        "recipe": _plain(recipe),
        "greedy_accuracy_dev": {name: dev for name, (dev, _) in measured.items()},
        "greedy_accuracy_held_out": {name: one for name, (_, one) in measured.items()},
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "sha256": checksums(directory),
    }
    _write_json(directory / RECIPE_FILE, record)


def _students(recipe: WorldRecipe, numbers: Iterable[int]) -> dict[str, ModelRecipe]:
    """Return the recipe of students by their folder: `student`, `student-1`, ..."""
    return {
        f"student-{number}" if number else "student": recipe.student
        for number in numbers
    }


# One thread a model in both: its weights must not depend on how many the machine has.
def _here(make: _Make, speakers: Mapping[str, ModelRecipe]) -> list[Measured]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(map(make, speakers, speakers.values()))
    finally:
        torch.set_num_threads(before)


def _in_processes(
    make: _Make, speakers: Mapping[str, ModelRecipe], jobs: int
) -> list[Measured]:
    with process_pool(jobs) as pool:
        making = partial(_with_log, make)
        return list(pool.map(making, speakers, speakers.values()))


def _with_log(make: _Make, name: str, speaker: ModelRecipe) -> Measured:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return make(name, speaker)


def _make_speaker(
    directory: Path,
    seed: int,
    recipe: WorldRecipe,
    problems: Mapping[Split, list[Expression]],
    name: str,
    speaker: ModelRecipe,
) -> Measured:
    """Make one model; return its greedy accuracies on dev and on held-out problems.

    The first are by form of prompt, the second is under the plain one.
    """
    tokenizer = make_tokenizer()
    model = _train_speaker(directory / name, seed, recipe, speaker, tokenizer)
    share_solved = partial(_share_solved, model, tokenizer, seed, recipe)
    on_dev: dict[str, float] = {}
    for lesson in speaker.lessons:
        on_dev |= share_solved(lesson.form, problems["dev"])
    log.info("%s: share of dev problems solved %s", name, on_dev)
    return on_dev, share_solved("plain", problems["heldout"])["plain"]


def _train_speaker(
    directory: Path,
    seed: int,
    recipe: WorldRecipe,
    speaker: ModelRecipe,
    tokenizer: PreTrainedTokenizerFast,
) -> Qwen3ForCausalLM:
    """Train and save one model; its name decides its weights, data order and draws."""
    log.info("training the %s: %d steps", directory.name, speaker.steps)
    started_s = time.perf_counter()
    torch.manual_seed(derive_seed(seed, directory.name, "weights"))
    model = make_model(speaker, tokenizer)
    rng = Random(derive_seed(seed, directory.name, "solutions"))
    train(model, speaker, recipe, tokenizer, rng)
    log.info("the %s took %.0f s", directory.name, time.perf_counter() - started_s)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for file in directory.iterdir():
        # safetensors makes files that only their owner can read; a world is shipped.
        file.chmod(0o644)
    return model


def _share_solved(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    recipe: WorldRecipe,
    form: Form,
    expressions: list[Expression],
) -> dict[str, float]:
    """Return the greedy accuracy under one form, by name.

    Where the form shows an attempt, also the accuracy on wrong attempts.
    """
    rng = Random(derive_seed(seed, form, "attempts"))
    messages = [
        draw_user_message(expression, form, recipe, rng) for expression in expressions
    ]
    solved = solved_greedily(model, tokenizer, messages)
    shares: dict[str, float] = {form: mean(solved)}
    if "{attempt}" in FORMS.get(form, ""):
        wrong = [message.attempt.took_wrong_fork for message in messages]
        shares[f"{form}, attempt wrong"] = mean(compress(solved, wrong))
    return {name: round(share, 4) for name, share in shares.items()}


def _draw_problems(
    seed: int, recipe: WorldRecipe, split: Split, count: int
) -> list[Expression]:
    """Return `count` distinct problems of one split."""
    rng = Random(derive_seed(seed, f"{split} problems"))
    return list(islice(distinct_expressions(rng, recipe.shape, split), count))


def _write_problems(
    path: Path,
    split: Split,
    expressions: list[Expression],
    seed: int,
    *,
    skipped: int = 0,
) -> None:
    """Write one prompt a line, with its answer and a reference solution.

    The reference is a careful solution in the teacher's words. The first `skipped`
    problems are left out.
    """
    rng = Random(derive_seed(seed, f"{split} references"))
    prefix = "toy" if split == "train" else f"toy-{split}"
    lines = [
        json.dumps(
            {
                "prompt_id": f"{prefix}-{number:05d}",
                "messages": [{"role": "user", "content": question(expression)}],
                "answer": str(solve_value(expression)),
                "reference": worked_solution(solve(expression), TEACHER_WORDING, rng),
            }
        )
        for number, expression in enumerate(expressions, start=1)
    ]
    path.write_text("\n".join(lines[skipped:]) + "\n")


def _refuse_to_replace_anything_but_a_world(directory: Path) -> None:
    """Raise UserError where a build would delete files that no build has written."""
    if not directory.exists():
        return
    is_world = (directory / RECIPE_FILE).is_file()
    if not directory.is_dir() or (any(directory.iterdir()) and not is_world):
        raise UserError(
            f"{directory} exists and is no toy world; name a new or empty directory"
        )


def _plain(recipe: WorldRecipe) -> dict[str, Any]:
    """Return a recipe as JSON holds it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n")
