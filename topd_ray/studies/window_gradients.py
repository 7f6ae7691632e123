"""The gradients of L_OPD and of L_traj on one window, side by side."""

from collections.abc import Sequence
from functools import partial

import torch

from topd_ray.config import Config
from topd_ray.reports.gradient_table import GradientPair
from topd_ray.studies.prefixes import Prefix, window_batch
from topd_ray.studies.window_learner import WindowLearner


def gradient_pairs(
    learner: WindowLearner, prefixes: Sequence[Prefix], config: Config
) -> list[GradientPair]:
    """Return both gradients of each prefix's window, at the weights of the learner."""
    return [_pair(learner, prefix, config) for prefix in prefixes]


def _pair(learner: WindowLearner, prefix: Prefix, config: Config) -> GradientPair:
    """Compare the gradient of L_OPD with what lambda L_traj adds to it.

    The loss has one gradient, that of the sum, so L_traj's is a difference.
    """
    batch = partial(window_batch, prefix, config.objective)
    learner.differentiate(batch(with_plan=False))
    opd = [gradient.clone() for gradient in learner.gradients()]
    sums = learner.differentiate(batch(with_plan=True))
    norm = torch.zeros(3, dtype=torch.float64)  # of L_OPD, of the rest, their product
    for own, both in zip(opd, learner.gradients(), strict=True):
        rest = both - own
        norm += torch.stack(
            [(own * own).sum(), (rest * rest).sum(), (own * rest).sum()]
        ).double()
    opd_norm, traj_norm = norm[:2].sqrt().tolist()
    return GradientPair(
        prompt_id=prefix.prompt_id,
        opd=sums.opd / sums.num_tokens,
        traj=sums.traj / sums.num_window_positions,
        opd_norm=opd_norm,
        traj_norm=traj_norm / config.objective.lambda_traj,
        cosine=float(norm[2]) / max(opd_norm * traj_norm, 1e-30),
    )


__all__ = ["gradient_pairs"]
