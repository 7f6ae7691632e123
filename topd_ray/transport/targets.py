"""Transport plan -> soft targets.

Axes: W windows, K rows (student), L columns (teacher).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from topd_ray.transport.problem import within


def soft_targets(
    plan_WKL: Float[Tensor, "W K L"], num_rows_W: Int[Tensor, "W"]
) -> Float[Tensor, "W K L"]:
    """For each student position, a distribution over the teacher positions it is
    matched with.

    Decision D8: row i holds num_rows * plan_ij, renormalised so that it sums to 1
    whatever the plan's last digits; the paper's rows sum to 1 / num_rows, which is no
    distribution. Rows of padding are 0, and so is a row without mass: drop poisoned
    windows by `converged_W`.
    """
    _, num_rows, _ = plan_WKL.shape
    inside_WK = within(num_rows_W.to(plan_WKL.device), num_rows)
    mass_WK = plan_WKL.sum(2).masked_fill(~inside_WK, 0.0)
    scale_WK = torch.where(mass_WK > 0, 1 / mass_WK, 0.0)
    return plan_WKL * scale_WK[:, :, None]
