"""Memory that `topd check` estimates for each actor, beside the peak that it reaches.

    python benchmarks/bench_memory.py [--models DIR] [NAME:DTYPE ...]

Each role runs in another process, alone, on random prompts and responses of the full
length. The peak is that of its anonymous memory, and its libraries; pages of model
files are not counted, because the kernel takes them back. DIR holds the model folders
that `make real` and `make real-small` leave.
"""

import argparse
import json
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import psutil
from measure import Claim, save
from role_work import (
    NUM_ROLLOUTS,
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    ROLES,
    case_config,
    run_role,
)

from topd_ray.inputs.resources import make_plan

CASES = (
    "smollm2:bfloat16",
    "smollm2:float32",
    "qwen05:bfloat16",
    "qwen05:float32",
    "qwen15:bfloat16",
)
TOLERANCE = 0.15
DEADLINE_S = 900.0
PERIOD_S = 0.05
GIB = 2**30


def main() -> None:
    """Run what is asked for, or one role of one case in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="NAME:DTYPE")
    parser.add_argument("--models", type=Path, default=Path("runs/real/models"))
    parser.add_argument("--role", choices=ROLES, help="run it in this process")
    asked = parser.parse_args()
    if asked.role:
        # The learner gets no windows: they add next to nothing to its memory.
        method = "opd" if asked.role == "learner" else "topd"
        config = case_config(asked.models, asked.cases[0], method=method)
        with Peak() as peak:
            run_role(config, asked.role)
        print(json.dumps({"peak_gib": peak.gib}))
        return
    leave([row for case in asked.cases for row in rows(asked.models, case)])


def rows(models: Path, case: str) -> list[dict[str, Any]]:
    """A row for each role of a case; [] where its model is not on this machine."""
    if not (models / case.partition(":")[0] / "config.json").is_file():
        print(f"{case}: no model in {models}", flush=True)
        return []
    estimates = {r.name: r.gib for r in make_plan(case_config(models, case)).roles}
    return [row(models, case, role, estimates[role] or 0.0) for role in ROLES]


def row(models: Path, case: str, role: str, estimate_gib: float) -> dict[str, Any]:
    """Measure the peak of one role in another process; return it and the estimate."""
    facts = {"model": case.replace(":", ", "), "actor": role, "estimate": estimate_gib}
    free_gib = psutil.virtual_memory().available / GIB
    if free_gib < 1.1 * estimate_gib:
        return facts | {"peak": "no room", "estimate / peak": ""}
    command = [sys.executable, __file__, "--models", models, "--role", role, case]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if ended.returncode:
        print(ended.stderr[-2000:], file=sys.stderr)
        return facts | {"peak": "failed", "estimate / peak": ""}
    peak = json.loads(ended.stdout.splitlines()[-1])["peak_gib"]
    print(
        f"{case} {role}: estimate {estimate_gib:.2f}, peak {peak:.2f} GiB", flush=True
    )
    return facts | {"peak": peak, "estimate / peak": estimate_gib / peak}


def leave(table: Sequence[dict[str, Any]]) -> None:
    """Save the claim, where a model was found."""
    if not table:
        return
    ratios = [r["estimate / peak"] for r in table if r["estimate / peak"]]
    failed = any(r["peak"] == "failed" for r in table)
    worst = max(ratios, key=lambda ratio: abs(ratio - 1), default=None)
    save(
        Claim(
            name="memory_estimate",
            claim="`topd check`, memory of an actor",
            against="its peak, on a CPU",
            goal="within 15 %",
            figure="" if worst is None else f"worst of {len(ratios)}: {worst - 1:+.0%}",
            met=None if worst is None else not failed and abs(worst - 1) <= TOLERANCE,
            setting=(
                f"Each role alone, {NUM_ROLLOUTS} rollouts of {PROMPT_TOKENS} +"
                f" {RESPONSE_TOKENS} tokens; GiB; the model is student and"
                " teacher."
            ),
            details=table,
        )
    )


class Peak:
    """Watches the memory of this process until the block ends."""

    def __init__(self) -> None:
        self.gib = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.gib += resident_gib("RssFile")

    def _watch(self) -> None:
        while not self._done.wait(PERIOD_S):
            self.gib = max(self.gib, resident_gib("RssAnon"))


def resident_gib(kind: str) -> float:
    """Resident memory of this process, of one kind that Linux counts."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{kind}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 2**20


if __name__ == "__main__":
    main()
