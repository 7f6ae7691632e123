"""Optimizer step -> share of the peak learning rate."""

import math


def lr_factor(
    step: int, *, total_steps: int, warmup_fraction: float, floor_fraction: float
) -> float:
    """Linear warm-up to 1, then a cosine that reaches `floor_fraction` at the last
    step.

    Steps count from 0; the first one already moves the weights, and past the end the
    floor holds.
    """
    num_warmup = math.ceil(warmup_fraction * total_steps)
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    progress = min(1.0, (step - num_warmup) / max(1, total_steps - 1 - num_warmup))
    return floor_fraction + (1.0 - floor_fraction) * 0.5 * (
        1.0 + math.cos(math.pi * progress)
    )
