"""Recipe -> world directory: problems, teacher and warm-started student, checksummed."""

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from topd_ray.errors import UserError
from topd_ray.seeds import derive_seed
from topd_ray.toy.accuracy import greedy_accuracy
from topd_ray.toy.checksums import RECIPE_FILE, checksums, verify_world
from topd_ray.toy.problems import Expression, distinct_expressions, solve_value
from topd_ray.toy.recipe import ModelRecipe, Recipe
from topd_ray.toy.tokenizer import make_tokenizer
from topd_ray.toy.training import make_model, train
from topd_ray.toy.wording import question

log = logging.getLogger(__name__)


def build_world(directory: Path, *, seed: int = 0, recipe: Recipe | None = None) -> None:
    """Make every file of a world and move them to `directory` at once, replacing what is there.

    Takes minutes on two cores. Raises UserError if `directory` holds something else than a world.
    """
    recipe = recipe or Recipe()
    _refuse_to_replace_anything_but_a_world(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".world-") as scratch:
        staged = Path(scratch) / "world"
        staged.mkdir()
        _fill(staged, seed, recipe)
        verify_world(staged)
        if directory.exists():
            directory.rename(Path(scratch) / "old")
        staged.rename(directory)


def _fill(directory: Path, seed: int, recipe: Recipe) -> None:
    """Write problems, models and, last, the recipe with all checksums."""
    tokenizer = make_tokenizer()
    held_out = _draw_problems(seed, recipe, recipe.num_held_out, held_out=True)
    _write_problems(directory / "heldout.jsonl", "toy-heldout", held_out)
    training = _draw_problems(seed, recipe, recipe.num_train, held_out=False)
    _write_problems(directory / "train.jsonl", "toy", training)
    accuracy = {
        name: _make_speaker(directory / name, seed, recipe, speaker, tokenizer, held_out)
        for name, speaker in (("teacher", recipe.teacher), ("student", recipe.student))
    }
    record = {
        "seed": seed,
        "recipe": asdict(recipe),
        "greedy_accuracy_held_out": accuracy,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "sha256": checksums(directory),
    }
    _write_json(directory / RECIPE_FILE, record)


def _make_speaker(
    directory: Path,
    seed: int,
    recipe: Recipe,
    speaker: ModelRecipe,
    tokenizer: PreTrainedTokenizerFast,
    held_out: list[Expression],
) -> float:
    """Train and save teacher or student; greedy accuracy on the held-out problems."""
    log.info("training the %s: %d steps", directory.name, speaker.steps)
    torch.manual_seed(derive_seed(seed, directory.name, "weights"))
    model = make_model(speaker, tokenizer)
    rng = Random(derive_seed(seed, directory.name, "solutions"))
    train(model, speaker, recipe.shape, tokenizer, rng)
    accuracy = greedy_accuracy(model, tokenizer, held_out)
    log.info("the %s solves %.1f %% of the held-out problems", directory.name, 100 * accuracy)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for file in directory.iterdir():
        file.chmod(0o644)
    return accuracy


def _draw_problems(seed: int, recipe: Recipe, count: int, *, held_out: bool) -> list[Expression]:
    """`count` distinct problems from one side of the held-out rule."""
    purpose = "held-out problems" if held_out else "training problems"
    rng = Random(derive_seed(seed, purpose))
    return list(islice(distinct_expressions(rng, recipe.shape, held_out=held_out), count))


def _write_problems(path: Path, prefix: str, expressions: list[Expression]) -> None:
    """One prompt a line, with its right answer."""
    lines = [
        json.dumps(
            {
                "prompt_id": f"{prefix}-{number:05d}",
                "messages": [{"role": "user", "content": question(expression)}],
                "answer": str(solve_value(expression)),
            }
        )
        for number, expression in enumerate(expressions, start=1)
    ]
    path.write_text("\n".join(lines) + "\n")


def _refuse_to_replace_anything_but_a_world(directory: Path) -> None:
    """UserError where a build would delete files that are not its own."""
    if not directory.exists():
        return
    is_world = (directory / RECIPE_FILE).is_file()
    if not directory.is_dir() or (any(directory.iterdir()) and not is_world):
        raise UserError(f"{directory} exists and is no toy world; name a new or empty directory")


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n")
