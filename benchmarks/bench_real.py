"""Stages of a step on real models, beside what this machine's processor allows.

    python benchmarks/bench_real.py [--models DIR]

The student is Qwen2.5-Coder-0.5B and the teacher 1.5B, in bfloat16; without them the
135M model stands for both. Each role runs alone with one thread, and CPU seconds are
counted, so that other work on the machine counts little. The roofline comes from
products and sums that are timed in the same process.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Claim, save
from role_work import (
    NUM_ROLLOUTS,
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    ROLES,
    case_config,
    run_role,
)

from topd_ray.config import Config
from topd_ray.models.facts import read_facts
from topd_ray.models.roles import resolve_student, resolve_teacher

PAIR = ("qwen05", "qwen15")
SMALL = ("smollm2", "smollm2")
GOAL = 0.6
"""Share of its roofline that each stage should reach."""
DEADLINE_S = 1800.0
PRODUCT = (320, 896, 4864)
"""Rows, inner and outer width of the timed product: a layer of the student."""
STREAM_ELEMENTS = 2**26
NUM_IDS = 151_936
TOKENS = NUM_ROLLOUTS * (PROMPT_TOKENS + RESPONSE_TOKENS)
TRAINED = NUM_ROLLOUTS * RESPONSE_TOKENS


def main() -> None:
    """Run every role, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("runs/real/models"))
    parser.add_argument("--role", choices=ROLES, help="run it in this process")
    asked = parser.parse_args()
    names = PAIR if (asked.models / PAIR[1]).is_dir() else SMALL
    if not (asked.models / names[0]).is_dir():
        print(
            f"no model in {asked.models}: `make real` or `make real-small` fetch some"
        )
        return
    if asked.role:
        print(json.dumps(measured(asked.models, names, asked.role)))
        return
    rows: list[dict[str, Any]] = []
    for role in ROLES:
        command = [sys.executable, __file__, "--models", asked.models, "--role", role]
        ended = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_S,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        rows += json.loads(ended.stdout.splitlines()[-1])
        print(rows[-1], flush=True)
    leave(rows, names)


def leave(rows: list[dict[str, Any]], names: tuple[str, str]) -> None:
    """Save the claim."""
    seconds = sum(row["CPU s"] for row in rows)
    floor = sum(row["roofline s"] for row in rows)
    worst = min(rows, key=lambda row: row["share"])
    rollout_s = next(row["CPU s"] for row in rows if row["stage"] == "rollout")
    step_ms = 1000 * rollout_s / RESPONSE_TOKENS
    save(
        Claim(
            name="real_roofline",
            claim="a step of real models, share of the CPU's roofline",
            against="products and bandwidth of the same process",
            goal=f"every stage >= {GOAL:.0%}",
            figure=(
                f"worst stage {worst['share']:.0%} ({worst['stage']}); the step"
                f" {floor / seconds:.0%} of {seconds:.0f} CPU s"
            ),
            met=worst["share"] >= GOAL,
            setting=(
                f"{names[1]} teaches {names[0]}, bfloat16, {NUM_ROLLOUTS} rollouts of"
                f" {PROMPT_TOKENS} + {RESPONSE_TOKENS} tokens, each role"
                " alone with one thread; the second of two steps."
                " Roofline: products at the rate, or weights at the bandwidth, that"
                " the same process reaches, whichever takes longer."
            ),
            details=rows,
            words=(
                f"Of the {step_ms:.0f} CPU ms in which {NUM_ROLLOUTS} rollouts get a"
                f" token, {noise_ms():.0f} go into random numbers: vLLM draws one for"
                " every id and sequence, each sequence from its seed."
            ),
        )
    )


def noise_ms() -> float:
    """CPU ms of the noise by which one token of every rollout is drawn."""
    import torch

    torch.set_num_threads(1)
    seeded = [torch.Generator().manual_seed(row) for row in range(NUM_ROLLOUTS)]
    noise = torch.empty(NUM_ROLLOUTS, NUM_IDS)

    def draw() -> None:
        for row, generator in enumerate(seeded):
            noise[row].exponential_(generator=generator)

    return 1000 * best_s(draw)


@dataclass(frozen=True, slots=True)
class Machine:
    """What one thread does in a CPU second."""

    product_flops: float
    """In bfloat16."""
    stream_bytes: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage cannot do without."""

    flops: float = 0.0
    moved_bytes: float = 0.0

    def seconds(self, machine: Machine) -> float:
        """CPU seconds on the roofline."""
        products_s = self.flops / machine.product_flops
        return max(products_s, self.moved_bytes / machine.stream_bytes)


def measured(models: Path, names: tuple[str, str], role: str) -> list[dict[str, Any]]:
    """Rows of one role: its stages in the second step."""
    method = "opd" if role == "learner" else "topd"
    config = case_config(models, f"{names[0]}:bfloat16", method=method)
    teacher = config.teacher.model_copy(update={"model": str(models / names[1])})
    config = config.model_copy(update={"teacher": teacher})
    seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        began_s = time.process_time()
        yield
        seconds[stage].append(time.process_time() - began_s)

    num_continued = run_role(config, role, timed)
    machine = machine_rates()
    work = necessary_work(config, num_continued)
    return [
        {
            "stage": stage,
            "CPU s": spent[-1],
            "roofline s": work[stage].seconds(machine),
            "share": work[stage].seconds(machine) / spent[-1],
            "GFLOP/s": machine.product_flops / 1e9,
            "GB/s": machine.stream_bytes / 1e9,
        }
        for stage, spent in seconds.items()
        if stage in work
    ]


def necessary_work(config: Config, num_continued: int) -> dict[str, Work]:
    """The work of each stage; `num_continued` tokens are the teacher's windows."""
    student = read_facts(resolve_student(config))
    teacher = read_facts(resolve_teacher(config))
    student_head = student.vocab_size * student.hidden_size
    teacher_head = teacher.vocab_size * teacher.hidden_size
    student_layers = student.num_parameters - student_head * (2 - student.tied)
    teacher_layers = teacher.num_parameters - teacher_head * (2 - teacher.tied)
    decoded = NUM_ROLLOUTS * RESPONSE_TOKENS
    window = config.probe.window
    return {
        "rollout": Work(
            flops=2 * (TOKENS * student_layers + decoded * student_head),
            moved_bytes=2 * RESPONSE_TOKENS * (student_layers + student_head),
        ),
        "score": Work(flops=2 * (TOKENS * teacher_layers + TRAINED * teacher_head)),
        "continue": Work(
            flops=2 * num_continued * (teacher_layers + teacher_head),
            moved_bytes=2 * window * (teacher_layers + teacher_head),
        ),
        "accumulate": Work(
            flops=6 * TOKENS * student_layers
            + TRAINED * (6 * student_head + 2 * teacher_head)
        ),
        # the norm and AdamW read the gradient; weights and moments are read and written
        "step": Work(moved_bytes=(4 + 4 + 24 + 2) * student.num_parameters),
        "publish": Work(moved_bytes=4 * student.num_parameters),
    }


def machine_rates() -> Machine:
    """Rates of this thread, the best of some."""
    import torch

    rows, inner, outer = PRODUCT
    stream = [torch.ones(STREAM_ELEMENTS) for _ in range(3)]

    left = torch.ones(rows, inner, dtype=torch.bfloat16)
    right = torch.ones(outer, inner, dtype=torch.bfloat16)
    return Machine(
        product_flops=2 * rows * inner * outer / best_s(lambda: left @ right.T),
        stream_bytes=12
        * STREAM_ELEMENTS
        / best_s(lambda: torch.add(stream[0], stream[1], out=stream[2])),
    )


def best_s(do: Callable[[], Any], times: int = 20) -> float:
    """The fewest CPU seconds of a call."""
    spent = []
    for _ in range(times):
        began_s = time.process_time()
        do()
        spent.append(time.process_time() - began_s)
    return min(spent)


if __name__ == "__main__":
    main()
