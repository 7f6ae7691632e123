"""ScoredRollout -> CandidateSet. Select the positions that are worth a probe. Pure."""

from topd_ray.candidates.select import num_to_pick, select_positions
from topd_ray.candidates.stage import candidate_set, find_candidates

__all__ = ["candidate_set", "find_candidates", "num_to_pick", "select_positions"]
