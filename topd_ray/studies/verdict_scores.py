"""Every score by which a high-loss position may be judged a fork or wording.

Axes: W windows, K tokens of a continuation, D width of the teacher.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from topd_ray.messages import CandidateSet, Flags, Floats, ProbeSet, ScoredRollout
from topd_ray.probe.cost import state_cost
from topd_ray.reports.verdict_tables import Verdict
from topd_ray.studies.middle_layer import MiddleLayer
from topd_ray.takeover.fork import surprise
from topd_ray.transport import TransportProblem, ordered_sinkhorn, sinkhorn

ORDER_SIGMA = 0.1
"""Width of the prior on places, as a share of the window: 5 of 50 tokens."""

Scores = dict[Verdict, Floats]


def free_scores(scored: ScoredRollout, candidates: CandidateSet) -> Scores:
    """Return the scores that the teacher's reading of the rollout gives, in nats.

    A higher one speaks for a fork.

    Args:
        scored: A rollout that the student sampled, with the teacher's entropies.
        candidates: Its W positions.
    """
    positions_W = candidates.positions_W
    logq_W = scored.logq_N[positions_W]
    entropy_W = scored.entropy_N[positions_W]
    return {
        Verdict("token loss"): candidates.losses_W,
        Verdict("-log p_T(y_t)"): -logq_W,
        Verdict("-H(p_T)"): -entropy_W,
        Verdict("log p_S(y_t) - log p_T(y_t)"): scored.rollout.logp_O[positions_W]
        - logq_W,
        Verdict("surprise: -log p_T(y_t) - H(p_T)"): surprise(logq_W, entropy_W),
    }


def token_distances(
    problem: TransportProblem,
    probes: Sequence[ProbeSet],
    *,
    windows: Sequence[int],
    epsilon: float,
) -> Scores:
    """Return D_OT of all windows by the ground cost of tokens, with and without order.

    Args:
        problem: The ground cost of all windows.
        probes: Their continuations, in the same order.
        windows: Lengths K at which both continuations are cut.
        epsilon: Entropic blur.
    """
    problems = {window: _cut(problem, window) for window in windows}
    return _distances("D_OT", problems, probes, epsilon=epsilon)


def state_distances(
    middle: MiddleLayer,
    candidates: Sequence[CandidateSet],
    probes: Sequence[ProbeSet],
    *,
    windows: Sequence[int],
    epsilon: float,
) -> Scores:
    """Return D_OT of all windows by the ground cost of states, with and without order.

    Arguments as in `token_distances`; `middle` reads the states.
    """
    num_student_W, num_teacher_W = _lengths(probes)
    states = [
        middle.window_states(candidate_set, probe_set)
        for candidate_set, probe_set in zip(candidates, probes, strict=True)
    ]
    student_WKD, teacher_WKD = (
        torch.from_numpy(np.concatenate(side)) for side in zip(*states, strict=True)
    )
    problems = {}
    for window in windows:
        sizes = num_student_W.clamp(max=window), num_teacher_W.clamp(max=window)
        cost_WKK = state_cost(student_WKD[:, :window], teacher_WKD[:, :window], *sizes)
        problems[window] = TransportProblem(cost_WKK, *sizes)
    return _distances("D_OT, hidden states", problems, probes, epsilon=epsilon)


def _distances(
    name: str,
    problems: Mapping[int, TransportProblem],
    probes: Sequence[ProbeSet],
    *,
    epsilon: float,
) -> Scores:
    """Return D_OT by each K of `problems`, without and with the prior on places."""
    solvers = {
        name: partial(sinkhorn, epsilon=epsilon),
        f"{name}, ordered": partial(
            ordered_sinkhorn, epsilon=epsilon, sigma=ORDER_SIGMA
        ),
    }
    scores: Scores = {}
    for label, solve in solvers.items():
        for window, problem in problems.items():
            plan = solve(problem)
            d_ot_W = plan.cost_W.masked_fill(~plan.converged_W, torch.nan)
            # As in the run: entropy would give identical continuations a distance.
            scores[Verdict(label, window)] = np.where(
                _identical(probes, window),
                np.float32(0.0),
                d_ot_W.float().cpu().numpy(),
            )
    return scores


def _cut(problem: TransportProblem, window: int) -> TransportProblem:
    """Return the problem of the first `window` tokens of both continuations."""
    return TransportProblem(
        problem.cost_WKL[:, :window, :window],
        problem.num_rows_W.clamp(max=window),
        problem.num_cols_W.clamp(max=window),
    )


def _identical(probes: Sequence[ProbeSet], window: int) -> Flags:
    """Return in which windows both continuations begin with the same tokens."""
    flags: Flags = np.concatenate(
        [
            (
                probe_set.student_ids_WK[:, :window]
                == probe_set.teacher_ids_WK[:, :window]
            ).all(-1)
            for probe_set in probes
        ]
    )
    return flags


def _lengths(probes: Sequence[ProbeSet]) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.from_numpy(np.concatenate([probe.num_student_W for probe in probes])),
        torch.from_numpy(np.concatenate([probe.num_teacher_W for probe in probes])),
    )


__all__ = ["Scores", "free_scores", "state_distances", "token_distances"]
