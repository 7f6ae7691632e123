"""Ground costs -> transport plans -> soft targets; knows matrices, not language models.

`TransportProblem` (a ragged batch) goes into `sinkhorn` or `exact`; a `TransportPlan`
comes out, and `soft_targets` turns its rows into distributions.
"""

from topd_ray.transport.exact import exact
from topd_ray.transport.problem import TransportProblem
from topd_ray.transport.sinkhorn import sinkhorn
from topd_ray.transport.solution import TransportPlan
from topd_ray.transport.targets import soft_targets

__all__ = ["TransportPlan", "TransportProblem", "exact", "sinkhorn", "soft_targets"]
