"""JudgedWindows -> Report: how well each verdict tells forks from wording.

Axes: W windows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from topd_ray.messages import Flags, Floats, Ints
from topd_ray.reports.report import Cell, Report, Table
from topd_ray.reports.verdict_figures import auroc_plot
from topd_ray.statistics import Estimate, auroc, bootstrap


class Verdict(NamedTuple):
    """A score by which a token may be judged; a higher one speaks for a fork."""

    name: str
    window: int | None = None
    """K, in tokens; None for a score that needs no continuation."""

    def __str__(self) -> str:
        return self.name if self.window is None else f"{self.name}, K {self.window}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedWindows:
    """High-loss positions whose truth is known; all columns have one entry a window.

    Example: two windows of one rollout.
        prompts=["p0", "p0"], rollouts=["p0/0", "p0/0"], positions_W=[4, 17],
        before=["we take ", "which gives 7 . "], tokens=["3", "hence"],
        is_fork_W=[True, False],
        scores={Verdict("surprise"): [7.1, 2.0], Verdict("D_OT", 8): [0.3, 0.1]}
    """

    prompts: list[str]
    rollouts: list[str]
    positions_W: Ints
    before: list[str]
    """The end of the text before the token."""
    tokens: list[str]
    """The student's token."""
    is_fork_W: Flags
    """Whether it is a fork; otherwise it is wording."""
    scores: Mapping[Verdict, Floats]
    """Every verdict; nan where a window's transport did not converge."""

    def solved(self) -> "JudgedWindows":
        """Return the windows that every verdict has a score for."""
        kept_W = np.isfinite(np.stack(list(self.scores.values()))).all(0)
        rows = np.flatnonzero(kept_W)
        return JudgedWindows(
            prompts=[self.prompts[row] for row in rows],
            rollouts=[self.rollouts[row] for row in rows],
            positions_W=self.positions_W[kept_W],
            before=[self.before[row] for row in rows],
            tokens=[self.tokens[row] for row in rows],
            is_fork_W=self.is_fork_W[kept_W],
            scores={name: score_W[kept_W] for name, score_W in self.scores.items()},
        )


def analyse(
    judged: JudgedWindows,
    *,
    num_high_loss: int,
    reference: Verdict,
    rule: str,
    seed: int,
    resamples: int,
) -> Report:
    """Return the table and the figure of all verdicts.

    Args:
        judged: The windows with a known truth.
        num_high_loss: Number of high-loss positions that they were picked from.
        reference: The verdict that the others are compared with.
        rule: What made a token a fork or wording, in a sentence.
        seed: Seed of the bootstrap.
        resamples: Its draws of whole prompts.
    """
    windows = judged.solved()
    # Windows of one prompt resemble each other, so the bootstrap draws whole prompts.
    estimate = partial(
        bootstrap, seed=seed, resamples=resamples, clusters=windows.prompts
    )
    areas = {
        verdict: estimate(auroc, score_W, windows.is_fork_W)
        for verdict, score_W in windows.scores.items()
    }
    gains = {
        verdict: estimate(_gain, score_W, windows.scores[reference], windows.is_fork_W)
        for verdict, score_W in windows.scores.items()
        if verdict != reference
    }
    return Report(
        study="verdicts",
        title="Verdicts: which score tells a fork from wording",
        summary=_summary(windows, areas, rule),
        tables=[
            _counts_table(judged, windows, num_high_loss),
            _areas_table(areas, gains, reference),
            _windows_table(windows),
        ],
        plots=[auroc_plot(_families(areas))],
    )


def _gain(score_W: ArrayLike, reference_W: ArrayLike, is_fork_W: ArrayLike) -> float:
    return auroc(score_W, is_fork_W) - auroc(reference_W, is_fork_W)


def _families(
    areas: Mapping[Verdict, Estimate],
) -> dict[str, dict[str, Estimate]]:
    """Return the areas of the free scores together, and of each distance by K."""
    families: dict[str, dict[str, Estimate]] = {}
    for verdict, area in areas.items():
        family = "free" if verdict.window is None else verdict.name
        families.setdefault(family, {})[str(verdict)] = area
    return families


def _summary(
    windows: JudgedWindows, areas: Mapping[Verdict, Estimate], rule: str
) -> list[str]:
    best_free = max(
        (verdict for verdict in areas if verdict.window is None),
        key=lambda verdict: areas[verdict].value,
    )
    best_d_ot = max(
        (verdict for verdict in areas if verdict.window is not None),
        key=lambda verdict: areas[verdict].value,
    )
    return [
        (
            f"High-loss positions of {len(set(windows.rollouts))} rollouts of"
            f" {len(set(windows.prompts))} prompts whose truth is known: {rule}"
        ),
        (
            "Best of the scores that the teacher's reading gives for free:"
            f" {best_free}, {areas[best_free]}. Best of the distances between"
            f" continuations: {best_d_ot}, {areas[best_d_ot]}."
        ),
    ]


def _counts_table(
    judged: JudgedWindows, windows: JudgedWindows, num_high_loss: int
) -> Table:
    num_labelled = len(judged.is_fork_W)
    num_kept = len(windows.is_fork_W)
    num_forks = int(windows.is_fork_W.sum())
    return Table(
        name="counts",
        title="Windows",
        columns=("windows", "number"),
        rows=[
            ("high-loss positions", num_high_loss),
            ("of unknown truth, left out", num_high_loss - num_labelled),
            ("without a converged plan, left out", num_labelled - num_kept),
            ("forks", num_forks),
            ("wording", num_kept - num_forks),
        ],
    )


def _areas_table(
    areas: Mapping[Verdict, Estimate],
    gains: Mapping[Verdict, Estimate],
    reference: Verdict,
) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (verdict.name, verdict.window, area, gains.get(verdict))
        for verdict, area in areas.items()
    ]
    return Table(
        name="auroc",
        title="Forks against wording",
        columns=("verdict", "K", "AUROC", f"minus that of {reference}"),
        rows=rows,
        note=(
            "AUROC: the chance that a fork has the higher score of a fork and a wording"
            " token; 0.5 is a coin. 95 % bootstrap intervals that draw whole prompts;"
            " differences are of the same draws."
        ),
    )


def _windows_table(windows: JudgedWindows) -> Table:
    columns = list(windows.scores.values())
    rows: list[tuple[Cell, ...]] = [
        (
            windows.prompts[row],
            windows.rollouts[row],
            int(windows.positions_W[row]),
            windows.before[row],
            windows.tokens[row],
            "fork" if windows.is_fork_W[row] else "wording",
            *(float(score_W[row]) for score_W in columns),
        )
        for row in range(len(windows.tokens))
    ]
    names = [str(verdict) for verdict in windows.scores]
    return Table(
        name="windows",
        title="Every window",
        columns=("prompt", "rollout", "position", "before", "token", "truth", *names),
        rows=rows,
        shown=False,
    )


__all__ = ["JudgedWindows", "Verdict", "analyse"]
