"""D9: which lambda? The demo's run at several weights of L_traj, several seeds each.

    .venv/bin/python benchmarks/lambda_sweep.py [--lambdas 0 0.1 0.3 1] [--seeds 0 1 2]

Every run sees the same prompts and takes the same number of steps; 0 is plain OPD (no probes).
Accuracy is greedy, on the held-out problems of the demo; a lambda chosen by them is tuned on them,
and is no claim about other models. Finished runs below `runs/sweep/` are taken as they are.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

ROOT = Path(__file__).parents[1]
TOPD = Path(sys.executable).parent / "topd"
RUNS = ROOT / "runs" / "sweep"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.0, 0.1, 0.3, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "local-toy.yaml")
    chosen = parser.parse_args()
    for seed in chosen.seeds:  # seeds outermost: an interrupted sweep compares like with like
        for weight in chosen.lambdas:
            summary = RUNS / name(weight, seed) / "summary.json"
            if not summary.exists():
                train(chosen.config, weight, seed)
    Console().print(Markdown(table(chosen.lambdas, chosen.seeds)))
    (RUNS / "table.md").write_text(table(chosen.lambdas, chosen.seeds))


def name(weight: float, seed: int) -> str:
    """Run folder of one cell."""
    return f"lambda-{weight:g}-seed-{seed}"


def train(config: Path, weight: float, seed: int) -> None:
    """One run; a failure ends the sweep."""
    method = [f"learner.lambda_traj={weight}"] if weight else ["run.method=opd"]
    subprocess.run(
        [
            TOPD,
            "train",
            config,
            f"run.root={RUNS}",
            f"run.name={name(weight, seed)}",
            f"run.seed={seed}",
            *method,
        ],
        cwd=ROOT,
        check=True,
    )


def table(lambdas: list[float], seeds: list[int]) -> str:
    """Markdown: accuracy by seed, mean, and the paired difference from lambda 0."""
    rows = {weight: [read(weight, seed) for seed in seeds] for weight in lambdas}
    lines = [
        "| lambda | "
        + " | ".join(f"seed {seed}" for seed in seeds)
        + " | mean | against OPD | s |",
        "|---" * (len(seeds) + 4) + "|",
    ]
    for weight, summaries in rows.items():
        after = [100 * one["accuracy_after"] for one in summaries]
        seconds = statistics.mean(one["wall_s"] for one in summaries)
        lines.append(
            f"| {weight:g} | "
            + " | ".join(f"{accuracy:.1f}" for accuracy in after)
            + f" | {statistics.mean(after):.1f} | {difference(after, rows.get(0.0))} "
            + f"| {seconds:.0f} |"
        )
    before = 100 * next(iter(rows.values()))[0]["accuracy_before"]
    return "\n".join([f"Accuracy (%), {before:.1f} before training.", "", *lines, ""])


def difference(after: list[float], plain: list[dict[str, Any]] | None) -> str:
    """Mean paired difference and its standard error, in points."""
    if plain is None:
        return ""
    pairs = [a - 100 * b["accuracy_after"] for a, b in zip(after, plain, strict=True)]
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
    return f"{statistics.mean(pairs):+.1f} ± {error:.1f}"


def read(weight: float, seed: int) -> dict[str, Any]:
    """summary.json of one cell."""
    found: dict[str, Any] = json.loads((RUNS / name(weight, seed) / "summary.json").read_text())
    return found


if __name__ == "__main__":
    main()
