"""D7: a candidate is a real divergence when its D_OT lies above a line drawn by recent ones."""

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from topd_ray.config import DivergenceConfig
from topd_ray.messages import Flags, ProbeSet


class RecentDistances:
    """Running quantile of D_OT over the last `history` candidates.

    The line is drawn between steps, never inside one: every window of a step meets the same line,
    whichever probe came back first.
    """

    def __init__(self, config: DivergenceConfig, values: Iterable[float] = ()) -> None:
        self._config = config
        self._values = deque(values, maxlen=config.history)

    def add(self, distances: Iterable[float]) -> None:
        """Remember D_OT of probed candidates, oldest first; unsolved ones (nan) are left out."""
        self._values.extend(d for d in distances if math.isfinite(d))

    def threshold(self) -> float | None:
        """D_OT above which a window diverges; None while a quantile has nothing to go by."""
        if self._config.rule == "absolute":
            return self._config.threshold
        if not self._values:
            return None
        return float(np.quantile(np.array(self._values), self._config.quantile))

    @property
    def values(self) -> list[float]:
        """What a checkpoint stores, oldest first."""
        return list(self._values)


def divergent(probes: ProbeSet, threshold: float) -> Flags:
    """Which windows of a rollout are real divergences: (W,). An unsolved plan never is one."""
    flags: Flags = probes.converged_W & (probes.d_ot_W > threshold)
    return flags
