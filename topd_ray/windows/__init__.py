"""ProbeSet -> TrainBatch. Which candidates are real divergences, and what is learned from them.

Pure: the verdict, the soft targets, and the packing of rollouts into micro-batches.
"""

from topd_ray.windows.pack import pack
from topd_ray.windows.verdict import RecentDistances, divergent

__all__ = ["RecentDistances", "divergent", "pack"]
