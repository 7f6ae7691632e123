"""ScoredRollout -> CandidateSet. Select the positions that are worth a probe. Pure."""

from topd_ray.candidates.select import num_to_pick, select_positions
from topd_ray.candidates.stage import find_candidates

__all__ = ["find_candidates", "num_to_pick", "select_positions"]
