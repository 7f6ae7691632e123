"""The verdict (D7): a candidate is a real divergence when its D_OT is high.

High means above a threshold, which recent windows set or the config names. Axes as in
messages.py.
"""

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from topd_ray.config import DivergenceConfig
from topd_ray.messages import HIGH, LOW, Flags, ProbeSet

LOW_LOSS_QUANTILE = 0.75
"""Quantile of low-loss positions' D_OT, up to which the paper sees false alarms.

Section 2.1: "the upper quartile of low-loss OT distances".
"""


class RecentDistances:
    """D_OT of the last `history` windows of `threshold_group`, and their quantile.

    Distances are added between steps, never inside one, so that every window of a step
    is judged by the same threshold, in any order of the probes.
    """

    def __init__(self, config: DivergenceConfig, values: Iterable[float] = ()) -> None:
        """Start with `values`, oldest first: those of a checkpoint, or none."""
        self._config = config
        self._values = deque(values, maxlen=config.history)

    def add(self, distances: Iterable[float]) -> None:
        """Append D_OT of `threshold_group`, oldest first; leave out nan."""
        # One nan would make every later quantile nan.
        self._values.extend(d for d in distances if math.isfinite(d))

    def threshold(self) -> float | None:
        """Return the D_OT above which a window diverges.

        None when the rule is a quantile and no distance has been added.
        """
        if self._config.rule == "absolute":
            return self._config.threshold
        return distance_quantile(self._config, self._values)

    @property
    def values(self) -> list[float]:
        """The distances, oldest first; a checkpoint stores them."""
        return list(self._values)


def distance_quantile(
    config: DivergenceConfig, distances: Iterable[float]
) -> float | None:
    """Return the quantile of D_OT that `config.rule` names.

    `quantile` is the paper's "bottom 30%" (section 5.1); `low_loss_q75` is the upper
    quartile of low-loss positions (section 2.1).

    Args:
        config: The rule, and the quantile of `rule: quantile`.
        distances: D_OT of windows of `threshold_group`, in any order; nan (a window
            with a non-finite cost) is left out.

    Returns:
        A D_OT, in units of the ground cost; None when no finite distance is given.
    """
    solved = [d for d in distances if math.isfinite(d)]
    if not solved:
        return None
    is_low = config.rule == "low_loss_q75"
    quantile = LOW_LOSS_QUANTILE if is_low else config.quantile
    return float(np.quantile(np.array(solved), quantile))


def threshold_group(config: DivergenceConfig) -> int:
    """Return the group of windows whose D_OT sets the threshold.

    Args:
        config: The rule of the verdict.

    Returns:
        LOW (low-loss controls) for `low_loss_q75`, else HIGH (candidates).
    """
    return LOW if config.rule == "low_loss_q75" else HIGH


def solved_distances(probe_sets: Iterable[ProbeSet], group: int) -> tuple[float, ...]:
    """Return D_OT of the windows of a group that the solver finished.

    The verdict ignores the others, so they set no threshold and enter no mean either:
    the distance of an unfinished plan is finite, and says nothing.

    Args:
        probe_sets: The windows of some rollouts.
        group: HIGH, RANDOM or LOW.

    Returns:
        Distances in the order of the windows.
    """
    distances: list[float] = []
    for probes in probe_sets:
        is_solved_W = probes.converged_W & (probes.groups_W == group)
        distances += map(float, probes.d_ot_W[is_solved_W])
    return tuple(distances)


def divergent(probes: ProbeSet, threshold: float) -> Flags:
    """Return which windows of a rollout are real divergences.

    High token loss and high D_OT together, as in section 3 of the paper.

    Args:
        probes: The windows of one rollout.
        threshold: D_OT that a divergence exceeds.

    Returns:
        True for solved candidates with D_OT > threshold, of shape (W,). A control is
        never a divergence, nor is a window whose plan did not converge.
    """
    flags: Flags = solved_candidates(probes) & (probes.d_ot_W > threshold)
    return flags


def false_alarm(probes: ProbeSet, threshold: float) -> Flags:
    """Return which windows of a rollout are false alarms.

    High token loss but low D_OT (sections 2.1 and 5.1 of the paper).

    Args:
        probes: The windows of one rollout.
        threshold: D_OT that a false alarm does not exceed.

    Returns:
        True for solved candidates with D_OT <= threshold, of shape (W,).
    """
    flags: Flags = solved_candidates(probes) & (probes.d_ot_W <= threshold)
    return flags


def solved_candidates(probes: ProbeSet) -> Flags:
    """Return which windows the verdict judges.

    Args:
        probes: The windows of one rollout.

    Returns:
        True for candidates (no controls) whose plan converged, of shape (W,).
    """
    flags: Flags = probes.converged_W & (probes.groups_W == HIGH)
    return flags
