"""The gradients of both losses on divergent windows -> a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from topd_ray.reports.report import Cell, Table
from topd_ray.statistics import bootstrap, mean, median


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientPair:
    """L_OPD and L_traj on the student's own window, before any update."""

    prompt_id: str
    opd: float
    """L_OPD a token, in nats."""
    traj: float
    """L_traj a window position, in nats."""
    opd_norm: float
    """Norm of the gradient of L_OPD, over all weights."""
    traj_norm: float
    """Norm of the gradient of L_traj, without lambda."""
    cosine: float
    """Cosine of the angle between the two."""


def gradients_table(
    pairs: Sequence[GradientPair], *, window: int, seed: int, resamples: int
) -> Table:
    """Return medians over the prefixes, with the lambda that makes both norms equal.

    `window` is K, in tokens.
    """
    estimate = partial(
        bootstrap,
        seed=seed,
        resamples=resamples,
        clusters=[pair.prompt_id for pair in pairs],
    )
    opd_P = np.array([pair.opd_norm for pair in pairs])
    traj_P = np.array([pair.traj_norm for pair in pairs])
    cosine_P = np.array([pair.cosine for pair in pairs])
    equal_P = opd_P / np.maximum(traj_P, 1e-30)
    quantities = (
        ("L_OPD a token (nats)", median, np.array([pair.opd for pair in pairs])),
        ("L_traj a position (nats)", median, np.array([pair.traj for pair in pairs])),
        ("norm of the gradient of L_OPD", median, opd_P),
        ("norm of the gradient of L_traj", median, traj_P),
        ("cosine between the two", median, cosine_P),
        ("share of windows where the two oppose each other", mean, cosine_P < 0),
        ("lambda at which both norms are equal", median, equal_P),
        ("the same with rows of the plan that sum to 1/K", median, window * equal_P),
    )
    rows: list[tuple[Cell, ...]] = [
        (name, estimate(statistic, values)) for name, statistic, values in quantities
    ]
    return Table(
        name="gradients",
        title="What each loss pulls at, before any update",
        columns=("quantity", "median over prefixes, or share"),
        rows=rows,
        note=(
            "On the student's own window, all weights together; 95 % bootstrap"
            " intervals over prompts. D8 normalises the rows of the plan to"
            " distributions; the paper's sum to 1/K, so that its lambda is K times this"
            " one for the same gradient."
        ),
    )


__all__ = ["GradientPair", "gradients_table"]
