"""D7: a candidate is a real divergence when its D_OT lies above a threshold that recent
windows set.
"""

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from topd_ray.config import DivergenceConfig
from topd_ray.messages import HIGH, LOW, Flags, ProbeSet

LOW_LOSS_QUANTILE = 0.75
"""Of low-loss positions' D_OT: the false-alarm threshold of the paper's section 2.1."""


class RecentDistances:
    """Running quantile of D_OT over the last `history` windows of `threshold_group`.

    The threshold changes between steps, never inside one: every window of a step meets
    the same threshold, whichever probe came back first.
    """

    def __init__(self, config: DivergenceConfig, values: Iterable[float] = ()) -> None:
        self._config = config
        self._values = deque(values, maxlen=config.history)

    def add(self, distances: Iterable[float]) -> None:
        """Remember D_OT of `threshold_group`, oldest first; skip nan (unsolved)."""
        self._values.extend(d for d in distances if math.isfinite(d))

    def threshold(self) -> float | None:
        """D_OT above which a window diverges; None while a quantile has nothing to go
        by.
        """
        if self._config.rule == "absolute":
            return self._config.threshold
        return distance_quantile(self._config, self._values)

    @property
    def values(self) -> list[float]:
        """What a checkpoint stores, oldest first."""
        return list(self._values)


def distance_quantile(
    config: DivergenceConfig, distances: Iterable[float]
) -> float | None:
    """Return the quantile of D_OT that `config.rule` names, whatever the order.

    Unsolved windows (nan) are left out; None where nothing is left.
    """
    solved = [d for d in distances if math.isfinite(d)]
    if not solved:
        return None
    is_low = config.rule == "low_loss_q75"
    quantile = LOW_LOSS_QUANTILE if is_low else config.quantile
    return float(np.quantile(np.array(solved), quantile))


def threshold_group(config: DivergenceConfig) -> int:
    """HIGH or LOW: the group of windows whose D_OT sets the threshold."""
    return LOW if config.rule == "low_loss_q75" else HIGH


def divergent(probes: ProbeSet, threshold: float) -> Flags:
    """Which windows of a rollout are real divergences: (W,).

    An unsolved plan never is one, nor is a control, however far apart its continuations
    are.
    """
    flags: Flags = solved_candidates(probes) & (probes.d_ot_W > threshold)
    return flags


def false_alarm(probes: ProbeSet, threshold: float) -> Flags:
    """Which windows are candidates at or below the threshold: (W,). An unsolved plan is
    neither.
    """
    flags: Flags = solved_candidates(probes) & (probes.d_ot_W <= threshold)
    return flags


def solved_candidates(probes: ProbeSet) -> Flags:
    """Windows that a verdict is about: (W,)."""
    flags: Flags = probes.converged_W & (probes.groups_W == HIGH)
    return flags
