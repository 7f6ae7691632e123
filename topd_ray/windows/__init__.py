"""ProbeSet -> TrainBatch. Judge the candidates, make targets, pack micro-batches.

Pure: the verdict, the soft targets, the weights of the tokens, and the packing of
rollouts into micro-batches.
"""

from topd_ray.windows.pack import pack
from topd_ray.windows.token_weights import token_weights
from topd_ray.windows.verdict import (
    RecentDistances,
    distance_quantile,
    divergent,
    solved_distances,
    threshold_group,
)

__all__ = [
    "RecentDistances",
    "distance_quantile",
    "divergent",
    "pack",
    "solved_distances",
    "threshold_group",
    "token_weights",
]
