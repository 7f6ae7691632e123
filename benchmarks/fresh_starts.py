"""Takeover against OPD over the fifteen fresh starts of stages 2 and 3, as
preregistered.md says.

.venv/bin/python benchmarks/fresh_starts.py
"""

import json
from pathlib import Path

from topd_ray.statistics import t_interval
from topd_ray.studies.config import load_study

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print mean, 95 % t-interval and positive pairs of each row."""
    for variant in ("takeover", "takeover, 32 tokens"):
        gains = [
            gain
            for study in ("takeover", "takeover-short")
            for gain in gains_over_opd(study, variant)
        ]
        positive = sum(gain > 0 for gain in gains)
        print(f"{variant}: {t_interval(gains)}, {positive} of {len(gains)}")


def gains_over_opd(study: str, variant: str) -> list[float]:
    """Greedy accuracy against OPD's, in points, by fresh start."""
    ablation = load_study(ROOT / "configs" / "studies" / f"{study}.yaml").ablation
    assert ablation is not None
    # A study that names no fresh start has no other.
    fresh = ablation.fresh or ablation.seeds
    report = ROOT / "benchmarks" / "reproduction" / study / "ablation.json"
    after = json.loads(report.read_text("utf-8"))["numbers"]["accuracy_after"]
    return [
        of - opd
        for seed, of, opd in zip(
            ablation.seeds, after[variant], after["opd"], strict=True
        )
        if seed in fresh
    ]


if __name__ == "__main__":
    main()
