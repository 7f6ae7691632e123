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
    """Return a distribution over teacher positions for each student position.

    Decision D8: y_kl = num_rows * gamma_kl, divided by the row's sum so that it is 1 to
    rounding. The soft target of the paper (section 3, "Trajectory-level Teacher Signal
    Injection") is gamma itself, whose rows sum to 1 / num_rows and are no distribution.

    Args:
        plan_WKL: Transport plans gamma, rows student, columns teacher.
        num_rows_W: True number of rows of each window; the rest is padding.

    Returns:
        Rows that sum to 1. Rows of padding are 0, and so is a row without mass: leave
        out windows that did not converge.
    """
    _, num_rows, _ = plan_WKL.shape
    inside_WK = within(num_rows_W.to(plan_WKL.device), num_rows)
    mass_WK = plan_WKL.sum(2).masked_fill(~inside_WK, 0.0)
    # Division by the row's own sum, not by 1 / num_rows: it also removes the last
    # digits by which a solver misses the marginal.
    scale_WK = torch.where(mass_WK > 0, 1 / mass_WK, 0.0)
    return plan_WKL * scale_WK[:, :, None]
