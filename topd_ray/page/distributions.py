"""Figures 2, 4 and 6 of the paper for one run, and its forks by kind of token.

Axes: W windows.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from topd_ray.messages import HIGH, LOW, RANDOM
from topd_ray.page.tokens import KIND_NAMES, TokenTexts
from topd_ray.page.windows import DIVERGENT, UNSOLVED, StepWindows
from topd_ray.reports.probing_windows import GROUP_NAMES, false_alarms
from topd_ray.statistics import (
    Estimate,
    binned_means,
    bootstrap,
    median,
    pearson,
    share,
    spearman,
    upper_quartile,
)

_GROUPS = (HIGH, RANDOM, LOW)
"""In the order of `page.windows.GROUP_NAMES`."""
_NUM_BARS = 40
_NUM_DENSITY = 60
_NUM_POINTS = 4_000
"""Most points of figure 6, spread evenly over the run: more cannot be told apart."""
_NUM_SLICES = 10
_RESAMPLES = 200
_SEED = 0


class RunWindows:
    """The solved windows of all steps as columns; grows step by step."""

    def __init__(self, tokens: TokenTexts) -> None:
        self._tokens = tokens
        self._parts: dict[int, dict[str, NDArray[Any]]] = {}
        self._prompts: dict[int, list[str]] = {}

    @property
    def thresholds(self) -> dict[int, float]:
        """The threshold of each step that has one."""
        found = {
            step: float(part["threshold"][0])
            for step, part in self._parts.items()
            if len(part["threshold"]) and math.isfinite(part["threshold"][0])
        }
        return dict(sorted(found.items()))

    def add(self, windows: StepWindows) -> None:
        """Take the windows of a step, once."""
        solved_W = np.isfinite(windows.d_ot_W) & (windows.verdicts_W != UNSOLVED)
        kept = np.flatnonzero(solved_W)
        self._parts[windows.step] = {
            "group": windows.groups_W[kept],
            "loss": windows.losses_W[kept],
            "d_ot": windows.d_ot_W[kept],
            "divergent": windows.verdicts_W[kept] == DIVERGENT,
            "kind": self._tokens.kinds(windows.first_W[kept]),
            "threshold": windows.threshold_W[:1],
            "unsolved": np.array([len(windows) - len(kept)]),
        }
        # A rollout's id is that of its prompt's position, a dot, and its sample.
        self._prompts[windows.step] = [
            windows.rollout_ids[row].rpartition(".")[0] for row in kept
        ]

    def keep(self, steps: Collection[int]) -> None:
        """Forget all other steps: a run that went back does them again."""
        for step in self._parts.keys() - set(steps):
            del self._parts[step]
            del self._prompts[step]

    def has(self, step: int) -> bool:
        """Return whether a step's windows were taken."""
        return step in self._parts

    def figures(self) -> dict[str, Any] | None:
        """Return the data of all figures as plain values; None without windows."""
        steps = sorted(self._parts)
        if not steps:
            return None
        columns = {
            name: np.concatenate([self._parts[step][name] for step in steps])
            for name in self._parts[steps[0]]
        }
        if not len(columns["d_ot"]):
            return None
        prompts = [prompt for step in steps for prompt in self._prompts[step]]
        thresholds = list(self.thresholds.values())
        groups_W = np.array(_GROUPS)[columns["group"]]
        is_high_W = groups_W == HIGH
        return {
            "num_windows": len(groups_W),
            "num_unsolved": int(columns["unsolved"].sum()),
            "threshold": _range(thresholds),
            "groups": _groups(columns["d_ot"], groups_W),
            "histogram": _histogram(columns, groups_W),
            "scatter": _scatter(columns, is_high_W, prompts),
            "kinds": _kinds(columns, groups_W),
        }


def _range(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"last": values[-1], "low": min(values), "high": max(values)}


def _groups(d_ot_W: NDArray[Any], groups_W: NDArray[Any]) -> list[dict[str, Any]]:
    """Return figure 2: density and quartiles of D_OT in each group."""
    largest = float(d_ot_W.max(initial=0.0)) or 1.0
    grid = np.linspace(0.0, largest, _NUM_DENSITY)
    rows = []
    for group in _GROUPS:
        values = d_ot_W[groups_W == group]
        if not len(values):
            continue
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        rows.append(
            {
                "name": GROUP_NAMES[group],
                "count": len(values),
                "quartiles": [low, middle, high],
                "density": _density(values, grid),
                "largest": largest,
            }
        )
    return rows


def _density(values: NDArray[Any], grid: NDArray[Any]) -> list[float]:
    # A density of a few values, or of a constant, does not exist.
    if len(values) < 3 or np.ptp(values) < 1e-9:
        return []
    # 2,000 values draw the same outline as all of them.
    thinned = values[:: max(1, len(values) // 2000)]
    if np.ptp(thinned) < 1e-9:
        return []
    return [round(float(y), 4) for y in gaussian_kde(thinned)(grid)]


def _histogram(
    columns: dict[str, NDArray[Any]], groups_W: NDArray[Any]
) -> dict[str, Any] | None:
    """Return figure 4: candidates by D_OT, the bars of the kinds stacked."""
    is_high_W = groups_W == HIGH
    d_ot = columns["d_ot"][is_high_W]
    kinds = columns["kind"][is_high_W]
    if not len(d_ot):
        return None
    edges = np.linspace(0.0, float(d_ot.max()) or 1.0, _NUM_BARS + 1)
    quartile = upper_quartile(columns["d_ot"][groups_W == LOW])
    return {
        "edges": [round(float(edge), 5) for edge in edges],
        "kinds": [
            {"name": name, "counts": np.histogram(d_ot[kinds == i], edges)[0].tolist()}
            for i, name in enumerate(KIND_NAMES)
        ],
        "low_loss_quartile": _number(quartile),
        "false_alarms": _number(false_alarms(columns["d_ot"], groups_W)),
    }


def _scatter(
    columns: dict[str, NDArray[Any]], is_high_W: NDArray[Any], prompts: list[str]
) -> dict[str, Any] | None:
    """Return figure 6: token loss against D_OT at candidates, and their correlation."""
    rows = np.flatnonzero(is_high_W & np.isfinite(columns["loss"]))
    num_all = len(rows)
    if not num_all:
        return None
    rows = rows[np.linspace(0, num_all - 1, min(num_all, _NUM_POINTS)).astype(int)]
    loss = columns["loss"][rows]
    d_ot = columns["d_ot"][rows]
    clusters = [prompts[row] for row in rows]
    return {
        "num_all": num_all,
        "loss": np.round(loss.astype(float), 4).tolist(),
        "d_ot": np.round(d_ot.astype(float), 4).tolist(),
        "divergent": columns["divergent"][rows].astype(int).tolist(),
        "slices": [
            {"x": part.x, **_estimate(part.y)}
            for part in binned_means(loss, d_ot, bins=_NUM_SLICES)
        ],
        **{
            name: _estimate(
                bootstrap(
                    statistic,
                    loss,
                    d_ot,
                    seed=_SEED,
                    resamples=_RESAMPLES,
                    clusters=clusters,
                )
            )
            for name, statistic in (("pearson", pearson), ("spearman", spearman))
        },
    }


def _kinds(
    columns: dict[str, NDArray[Any]], groups_W: NDArray[Any]
) -> list[dict[str, Any]]:
    """Return forks by the kind of the student's token."""
    is_high_W = groups_W == HIGH
    is_random_W = groups_W == RANDOM
    rows = []
    for index, name in enumerate(KIND_NAMES):
        is_kind_W = columns["kind"] == index
        mine_W = is_high_W & is_kind_W
        rows.append(
            {
                "name": name,
                "count": int(mine_W.sum()),
                "of_candidates": _estimate(share(is_kind_W[is_high_W])),
                "of_random": _estimate(share(is_kind_W[is_random_W])),
                "divergent": _estimate(share(columns["divergent"][mine_W])),
                "median_d_ot": _number(median(columns["d_ot"][mine_W])),
                "median_loss": _number(median(columns["loss"][mine_W])),
            }
        )
    return rows


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {
        "value": _number(estimate.value),
        "low": _number(estimate.low),
        "high": _number(estimate.high),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


__all__ = ["RunWindows"]
