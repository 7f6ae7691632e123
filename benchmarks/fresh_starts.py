"""Takeover against OPD over the fifteen fresh starts of stages 2 and 3, as
preregistered.md says.

.venv/bin/python benchmarks/fresh_starts.py
"""

import json
from pathlib import Path

from topd_ray.statistics import t_interval

REPRODUCTION = Path(__file__).parent / "reproduction"
STUDIES = {"takeover": range(5, 10), "takeover-short": range(10, 20)}
"""Study -> the seeds of its fresh starts."""


def main() -> None:
    """Print mean, 95 % t-interval and positive pairs of each row."""
    for variant in ("takeover", "takeover, 32 tokens"):
        gains = [gain for name in STUDIES for gain in gains_over_opd(name, variant)]
        positive = sum(gain > 0 for gain in gains)
        print(f"{variant}: {t_interval(gains)}, {positive} of {len(gains)}")


def gains_over_opd(study: str, variant: str) -> list[float]:
    """Greedy accuracy against OPD's, in points, by fresh start."""
    report = json.loads((REPRODUCTION / study / "ablation.json").read_text("utf-8"))
    numbers = report["numbers"]
    after = numbers["accuracy_after"]
    return [
        of - opd
        for seed, of, opd in zip(
            numbers["seeds"], after[variant], after["opd"], strict=True
        )
        if seed in STUDIES[study]
    ]


if __name__ == "__main__":
    main()
