"""Ground costs -> transport plans -> soft targets.

`TransportProblem` (a ragged batch of cost matrices) goes into `sinkhorn`,
`ordered_sinkhorn` or `exact`; a `TransportPlan` comes out, and `soft_targets` turns its
rows into distributions. All of it is arithmetic on matrices: no tokens, models, config
or messages.
"""

from topd_ray.transport.exact import exact
from topd_ray.transport.ordered import ordered_sinkhorn
from topd_ray.transport.problem import TransportProblem
from topd_ray.transport.sinkhorn import sinkhorn
from topd_ray.transport.solution import TransportPlan
from topd_ray.transport.targets import soft_targets

__all__ = [
    "TransportPlan",
    "TransportProblem",
    "exact",
    "ordered_sinkhorn",
    "sinkhorn",
    "soft_targets",
]
