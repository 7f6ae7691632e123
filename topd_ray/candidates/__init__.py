"""ScoredRollout -> CandidateSet. Pure."""

from topd_ray.candidates.select import select_positions
from topd_ray.candidates.stage import find_candidates

__all__ = ["find_candidates", "select_positions"]
