"""Judge the run folder of `make gpu-smoke`: every step was taken, and it taught.

python tests/gpu_smoke.py RUN
"""

import json
import math
import sys
from pathlib import Path

_LEAST_GAIN = 0.2
"""The same run gains 0.54 on a CPU; less than this says that something is wrong."""


def complaints(run: Path) -> list[str]:
    """Return what is wrong with a finished run folder."""
    found = []
    summary = json.loads((run / "summary.json").read_text())
    before = summary["accuracy_before"]
    after = summary["accuracy_after"]
    if after - before < _LEAST_GAIN:
        found.append(f"accuracy went from {before:.1%} to {after:.1%}: no training")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        if not math.isfinite(line["loss/opd"]):
            found.append(f"step {line['step']}: loss {line['loss/opd']}")
    if len(lines) != summary["steps"]:
        found.append(f"{len(lines)} of {summary['steps']} steps are in metrics.jsonl")
    return found


def figures(run: Path) -> list[str]:
    """Return what a stranger to the machine asks first: seconds, rates, memory."""
    summary = json.loads((run / "summary.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    # The first step compiles and captures; a run of one step has no other.
    steps = [json.loads(line) for line in lines[1:] or lines]

    def mean(name: str) -> float:
        return sum(step[name] for step in steps) / len(steps)

    rates = [
        f"{mean(f'{stage}/num_tokens') / busy_s:,.0f} tokens/s {stage}"
        for stage in ("rollout", "teacher", "probe", "learner")
        if (busy_s := mean(f"{stage}/busy_s")) > 0
    ]
    memory = [f"{gb} GB {role}" for role, gb in summary["peak_memory_gb"].items()]
    return [
        f"a step {mean('step/wall_s'):.2f} s,"
        f" new weights {mean('weights/update_s'):.2f} s",
        f"while at work: {', '.join(rates)}",
        f"peak memory of the machine: {', '.join(memory)}",
    ]


def main() -> None:
    """Print figures and complaints; the exit code says whether there are complaints."""
    run = Path(sys.argv[1])
    print("\n".join(figures(run)))
    found = complaints(run)
    print("\n".join(found) or "gpu-smoke: the run has taught its student")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
