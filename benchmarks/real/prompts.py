"""Verifiable problems in words, by reasoning-gym: train, dev and held-out files.

    python -m benchmarks.real.prompts FOLDER [TASK ...]

Each file has its own seed. Two files never share a question: the generators draw from
small worlds, so a question of `train` that `dev` or `heldout` asks too is left out.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import reasoning_gym

INSTRUCTION = " Think step by step, and put your final answer within \\boxed{}."
# Problem i is drawn with seed + i, so neighbouring seeds give the same problems. The
# later files leave out what the earlier ones ask.
SEEDS = {"heldout": 1_000_000, "dev": 2_000_000, "train": 3_000_000}
SIZES = {"heldout": 400, "dev": 200, "train": 4000}


@dataclass(frozen=True)
class Task:
    """One generator of reasoning-gym and its difficulty."""

    name: str
    settings: dict[str, int] = field(default_factory=dict)
    worked: Callable[[str], str] | None = None
    """Question -> a worked solution, for tasks that have one."""


def worked_sum(question: str) -> str:
    """Return a solution of a chain sum that adds one term a line."""
    terms = re.findall(r"([+-]?)\s*(\d+)", question.rpartition(":")[2])
    total = int(terms[0][1])
    lines = []
    for sign, digits in terms[1:]:
        after = total - int(digits) if sign == "-" else total + int(digits)
        lines.append(f"{total} {sign} {digits} = {after}")
        total = after
    return "\n".join([*lines, f"The answer is \\boxed{{{total}}}."])


TASKS = {
    task.name: task
    for task in (
        Task(
            "chain_sum",
            {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 2},
            worked_sum,
        ),
        Task("gsm_symbolic"),
    )
}


def write_prompts(folder: Path, tasks: list[str]) -> None:
    """Write `train.jsonl`, `dev.jsonl` and `heldout.jsonl`, tasks in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for name, seed in SEEDS.items():
        rows = list(_rows(tasks, SIZES[name], seed, seen))
        seen.update(row["prompt"] for row in rows)
        target = folder / f"{name}.jsonl"
        aside = target.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        aside.replace(target)
        print(f"{target}: {len(rows)} problems")


def _rows(
    tasks: list[str], size: int, seed: int, seen: set[str]
) -> Iterator[dict[str, Any]]:
    sets = [
        reasoning_gym.create_dataset(
            name, size=size // len(tasks), seed=seed, **TASKS[name].settings
        )
        for name in tasks
    ]
    for number, problems in enumerate(zip(*sets, strict=True)):
        for name, problem in zip(tasks, problems, strict=True):
            question = problem["question"].strip()
            prompt = question + INSTRUCTION
            if prompt in seen:
                continue
            row = {
                "prompt_id": f"{name}-{seed + number}",
                "prompt": prompt,
                "answer": str(problem["answer"]),
            }
            worked = TASKS[name].worked
            if worked is not None:
                row["response"] = row["reference"] = worked(question)
            yield row


if __name__ == "__main__":
    write_prompts(Path(sys.argv[1]), sys.argv[2:] or list(TASKS))
