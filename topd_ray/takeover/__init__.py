"""ScoredRollout -> Takeover -> ScoredRollout. The teacher goes on from the fork."""

from topd_ray.takeover.actor import TakeoverActor, Takeovers
from topd_ray.takeover.fork import fork_ahead, fork_candidates, fork_of
from topd_ray.takeover.splice import taken_over

__all__ = [
    "TakeoverActor",
    "Takeovers",
    "fork_ahead",
    "fork_candidates",
    "fork_of",
    "taken_over",
]
