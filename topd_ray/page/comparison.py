"""Two runs side by side: paired differences, and rollouts of the same prompts."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from topd_ray.page.arrow import lists
from topd_ray.page.grades import UNKNOWN
from topd_ray.page.step_blocks import StepBlocks
from topd_ray.statistics import Estimate, paired_difference

_SEED = 0


@dataclass(slots=True)
class PromptResults:
    """The rollouts of one prompt in one run, over all its steps."""

    rights: list[int] = field(default_factory=list)
    """1 or 0 of each graded rollout."""
    losses: list[float] = field(default_factory=list)
    """Mean token loss of each rollout, nats a token."""
    lengths: list[int] = field(default_factory=list)
    places: list[tuple[int, str]] = field(default_factory=list)
    """Step and rollout id."""


def prompt_results(blocks: StepBlocks) -> dict[str, PromptResults]:
    """Return the results of every prompt of a run with recorded rollouts."""
    found: dict[str, PromptResults] = defaultdict(PromptResults)
    for step in blocks.steps():
        rollouts = blocks.rollouts(step)
        if rollouts is None:
            continue
        _, lengths = lists(rollouts.table, "response_ids", "uint32")
        values, counts = lists(rollouts.table, "token_loss", "float32")
        losses = np.split(values, np.cumsum(counts)[:-1])
        for row, prompt_id in enumerate(rollouts.prompt_ids):
            results = found[prompt_id]
            results.places.append((step, rollouts.rollout_ids[row]))
            results.lengths.append(int(lengths[row]))
            if len(losses[row]):
                results.losses.append(float(np.mean(losses[row])))
            if rollouts.grades_R[row] != UNKNOWN:
                results.rights.append(int(rollouts.grades_R[row]))
    return dict(found)


def comparison(
    own: tuple[Mapping[str, Any], StepBlocks],
    other: tuple[Mapping[str, Any], StepBlocks],
) -> dict[str, Any]:
    """Return the differences between two runs: other minus own.

    Each run is its overview and its blocks.
    """
    (overview_a, blocks_a), (overview_b, blocks_b) = own, other
    results_a = prompt_results(blocks_a)
    results_b = prompt_results(blocks_b)
    shared = sorted(results_a.keys() & results_b.keys())
    return {
        "name": overview_b["name"],
        "method": overview_b["method"],
        "steps": overview_b["steps"],
        "curves": overview_b["curves"],
        "accuracy": overview_b["accuracy"],
        "differences": [
            *_held_out(overview_a, overview_b),
            *_paired(results_a, results_b, shared),
            *_by_step(overview_a, overview_b),
        ],
        "prompts": [
            {
                "prompt_id": prompt_id,
                "a": results_a[prompt_id].places,
                "b": results_b[prompt_id].places,
                "right_a": _mean(results_a[prompt_id].rights),
                "right_b": _mean(results_b[prompt_id].rights),
            }
            for prompt_id in shared
        ],
    }


def _held_out(
    overview_a: Mapping[str, Any], overview_b: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the difference of the last accuracies.

    A run keeps counts, not each problem's verdict, so the interval is that of two
    independent shares (Newcombe 1998, method 10, from both Wilson intervals).
    """
    if not overview_a["accuracy"] or not overview_b["accuracy"]:
        return []
    a, b = overview_a["accuracy"][-1], overview_b["accuracy"][-1]
    if None in (a["low"], a["high"], b["low"], b["high"]):
        return []
    difference = b["share"] - a["share"]
    low = math.hypot(b["share"] - b["low"], a["high"] - a["share"])
    high = math.hypot(b["high"] - b["share"], a["share"] - a["low"])
    return [
        {
            "label": "Accuracy on held-out problems",
            "unit": "share",
            "a": a["share"],
            "b": b["share"],
            "difference": difference,
            "low": difference - low,
            "high": difference + high,
            "pairs": None,
            "how": "independent samples",
        }
    ]


def _paired(
    results_a: Mapping[str, PromptResults],
    results_b: Mapping[str, PromptResults],
    shared: Sequence[str],
) -> list[dict[str, Any]]:
    """Return differences of the means of each prompt that both runs recorded."""
    rows = []
    for label, unit, name in (
        ("Right rollouts of a prompt", "share", "rights"),
        ("Token loss of a prompt's rollouts", "nats a token", "losses"),
        ("Length of a prompt's rollouts", "tokens", "lengths"),
    ):
        pairs = [
            (_mean(getattr(results_a[key], name)), _mean(getattr(results_b[key], name)))
            for key in shared
        ]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        if len(both) > 1:
            rows.append(_row(label, unit, both, "prompts"))
    return rows


def _by_step(
    overview_a: Mapping[str, Any], overview_b: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return differences of the curves, step by step."""
    lines_b = {
        (curve["name"], series["label"]): dict(
            zip(overview_b["steps"], series["values"], strict=True)
        )
        for curve in overview_b["curves"]
        for series in curve["series"]
    }
    rows = []
    for curve in overview_a["curves"]:
        series = curve["series"][0]
        values_b = lines_b.get((curve["name"], series["label"]), {})
        both = [
            (value, values_b[step])
            for step, value in zip(overview_a["steps"], series["values"], strict=True)
            if value is not None and values_b.get(step) is not None
        ]
        if len(both) > 1:
            unit = "share" if curve["is_share"] else curve["unit"]
            rows.append(_row(curve["title"], unit, both, "steps"))
    return rows


def _row(
    label: str, unit: str, pairs: Sequence[tuple[float, float]], of_what: str
) -> dict[str, Any]:
    a, b = np.array(pairs, float).T
    tested = paired_difference(a, b, seed=_SEED)
    difference: Estimate = tested.mean
    return {
        "label": label,
        "unit": unit,
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "pairs": len(pairs),
        "how": f"paired by {of_what}",
        "p": tested.p_sign_flip,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


__all__ = ["PromptResults", "comparison", "prompt_results"]
