"""Layouts of packed sequences."""

import torch

from topd_ray.learner.layout import Layout

TREE = ((4, 0, 0), (2, 0, 2), (1, 0, 4), (2, 3, 0), (2, 3, 1))


def make_layout(*segments: tuple[int, int, int]) -> Layout:
    """Return the layout of segments given as (length, trunk, branch)."""
    return Layout(*torch.tensor(segments).unbind(1))
