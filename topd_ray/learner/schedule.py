"""Optimizer step -> share of the peak learning rate."""

import math


def lr_factor(
    step: int, *, total_steps: int, warmup_fraction: float, floor_fraction: float
) -> float:
    """Return the share of the peak learning rate that a step takes.

    A linear warm-up to 1, then a cosine that reaches `floor_fraction` at the last step.

    Args:
        step: Number of updates made so far, so 0 at the first step.
        total_steps: Steps of the whole run.
        warmup_fraction: Share of the steps that warm up, 0..1.
        floor_fraction: Share of the peak at the end, 0..1; it holds past the end.
    """
    num_warmup = math.ceil(warmup_fraction * total_steps)
    # step + 1 over num_warmup + 1: the first step already moves the weights, and the
    # peak belongs to the first step after the warm-up
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    progress = min(1.0, (step - num_warmup) / max(1, total_steps - 1 - num_warmup))
    return floor_fraction + (1.0 - floor_fraction) * 0.5 * (
        1.0 + math.cos(math.pi * progress)
    )
