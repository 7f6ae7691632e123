"""Load tasks of lm-evaluation-harness, let a model answer them, grade the answers.

Importing this module imports the harness (a second and more), so import it inside
functions.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets import Dataset
from httpx import HTTPError
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate

from topd_ray.errors import UserError
from topd_ray.evaluation.answers import extract_boxed
from topd_ray.evaluation.harness.model import EngineModel, Response
from topd_ray.evaluation.harness.task_names import CODE, TaskSampling

TASK_FILES = Path(__file__).parent / "tasks"
STOCK_FILES = Path(lm_eval.tasks.__file__).parent
STOCK_FOLDERS = ("humaneval", "mbpp")
SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
"""Options of a task that is greedy by default, where several samples are wanted."""
GREEDY = {"do_sample": False, "temperature": 0.0, "top_p": 1.0}
CODE_METRICS = ("pass@1", "pass_at_1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """All responses to one task's problems, and which of them are right."""

    task: str
    source: str
    """Where the problems came from: a file or a name on the hub."""
    sampling: TaskSampling
    """The sampling that was used, every field set."""
    num_correct_P: tuple[int, ...]
    num_truncated: int
    num_tokens: int
    samples: tuple[dict[str, Any], ...]
    """One row a response, of plain values."""


def task_paths() -> list[Path]:
    """Return the folders of our task files and of the stock tasks that we use."""
    return [TASK_FILES, *(STOCK_FILES / folder for folder in STOCK_FOLDERS)]


def load_task(
    name: str, sampling: TaskSampling, rows: Sequence[Mapping[str, Any]] | None
) -> Task:
    """Return the harness's task `name`, with problems from `rows` or from the hub.

    Raises UserError where the hub does not give them.
    """
    # It warns about every option that we set on purpose.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if name in CODE:
        # The user agreed by a flag; the harness's metric reads this variable only.
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    changed = _changes(name, sampling, rows)
    manager = lm_eval.tasks.TaskManager(
        include_path=task_paths(), include_defaults=False
    )
    # Only a task inside a group may have its config changed.
    try:
        group = manager.load({"group": "topd", "task": [{"task": name, **changed}]})
    except (OSError, ValueError, RuntimeError, ImportError, HTTPError) as error:
        what = "its problems"
        way_out = ", or give a local file with --data"
        if name in CODE:
            # Its metric is a file on the hub too, which no option replaces.
            what = "its problems or the metric code_eval"
            way_out = ""
        raise UserError(
            f"task {name}: {what} could not be had from the hub:"
            f" {' '.join(str(error).split())}; go online once{way_out}"
        ) from None
    task = group["tasks"][name]
    task.set_config("generation_kwargs", _generation(task, sampling), update=True)
    task.set_fewshot_seed(sampling.seed)
    return task


def _changes(
    name: str, sampling: TaskSampling, rows: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    if rows is not None:
        local = {"test": Dataset.from_list([dict(row) for row in rows])}
        changed |= {"custom_dataset": lambda **_metadata: local, "test_split": "test"}
    if sampling.samples is not None:
        changed["repeats"] = sampling.samples
        # The filter of humaneval_plus keeps all samples as it is.
        if name != "humaneval_plus":
            first_k = {"function": "take_first_k", "k": sampling.samples}
            changed["filter_list"] = [{"name": "samples", "filter": [first_k]}]
    return changed


def _generation(task: Task, sampling: TaskSampling) -> dict[str, Any]:
    """Return the generation options that the user's sampling changes.

    Several samples are never greedy, even where the task's file is.
    """
    chosen: dict[str, Any] = {}
    task_default = task.get_config("generation_kwargs")
    if sampling.temperature == 0:
        chosen |= GREEDY
    elif sampling.temperature is not None or (
        (sampling.samples or 1) > 1 and not task_default.get("do_sample")
    ):
        chosen |= SAMPLED
    if sampling.temperature:
        chosen["temperature"] = sampling.temperature
    if sampling.top_p is not None:
        chosen["top_p"] = sampling.top_p
    if sampling.max_tokens is not None:
        chosen["max_gen_toks"] = sampling.max_tokens
    return chosen


def answer_task(
    task: Task,
    model: EngineModel,
    *,
    name: str,
    source: str,
    seed: int,
    num_problems: int | None,
) -> Answered:
    """Let the model answer the first `num_problems` (None: all); grade the answers."""
    results = evaluate(
        lm=model,
        task_dict={"tasks": {name: task}},
        limit=num_problems,
        apply_chat_template=name not in CODE,
        fewshot_as_multiturn=True,
        bootstrap_iters=0,  # harness/pass_at_k.py computes the intervals
        confirm_run_unsafe_code=name in CODE,
    )
    logged = sorted(results["samples"][name], key=lambda sample: int(sample["doc_id"]))
    options = task.get_config("generation_kwargs")
    repeats = int(task.get_config("repeats"))
    responses_by_problem = [model.responses[sample["doc_id"]] for sample in logged]
    responses = list(chain.from_iterable(responses_by_problem))
    return Answered(
        task=name,
        source=source,
        sampling=TaskSampling(
            samples=repeats,
            temperature=(
                float(options.get("temperature", 0.0)) if options["do_sample"] else 0.0
            ),
            top_p=float(options.get("top_p", 1.0)),
            max_tokens=max(response.max_tokens for response in responses),
            seed=seed,
        ),
        num_correct_P=tuple(_num_correct(sample, repeats) for sample in logged),
        num_truncated=sum(response.truncated for response in responses),
        num_tokens=sum(response.num_tokens for response in responses),
        samples=tuple(
            chain.from_iterable(
                _rows(name, sample, model.responses[sample["doc_id"]])
                for sample in logged
            )
        ),
    )


def _num_correct(logged: Mapping[str, Any], repeats: int) -> int:
    if "correct" in logged:
        return sum(logged["correct"])
    # The stock code tasks give a problem's share of right programs.
    share = next(logged[metric] for metric in CODE_METRICS if metric in logged)
    return round(float(share) * repeats)


def _rows(
    name: str, logged: Mapping[str, Any], responses: Sequence[Response]
) -> list[dict[str, Any]]:
    boxed = "correct" in logged
    doc = logged["doc"]
    correct = logged["correct"] if boxed else [None] * len(responses)
    return [
        {
            "task": name,
            "doc_id": logged["doc_id"],
            "prompt_id": str(
                doc.get("prompt_id", doc.get("task_id", logged["doc_id"]))
            ),
            "sample": number,
            "seed": response.seed,
            "prompt": response.prompt,
            "response": response.text,
            "predicted": extract_boxed(response.text) if boxed else None,
            "truth": str(logged["target"]),
            "correct": right,
            "num_tokens": response.num_tokens,
            "truncated": response.truncated,
        }
        for number, (response, right) in enumerate(zip(responses, correct, strict=True))
    ]


__all__ = ["Answered", "answer_task", "load_task", "task_paths"]
