"""Divergent prefixes: one window of a rollout, cut out so that it can be learned by
itself.

The window is the response of a rollout whose prompt is the original prompt and y_<t:
whatever trains on a rollout then trains on the window, and on nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from topd_ray.config import ObjectiveConfig
from topd_ray.engines.protocols import GenerationEngine, GenerationRequest
from topd_ray.messages import (
    CandidateSet,
    Ints,
    ProbeSet,
    Rollout,
    ScoredRollout,
    TrainBatch,
)
from topd_ray.seeds import derive_seed
from topd_ray.studies.local_stages import Lab
from topd_ray.windows import divergent, pack
from topd_ray.windows.verdict import solved_candidates

WindowOf = Literal["student", "teacher"]
_EVERY_WINDOW = -1.0
"""A threshold that every D_OT exceeds, because the windows have been chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """One divergent point, with everything from there on."""

    prompt_id: str
    found: CandidateSet
    """With this position alone."""
    probe: ProbeSet
    """With this window alone."""
    window: ScoredRollout
    """The student's own window as a response to the prefix, under the live teacher's
    eyes.
    """
    teacher_window: ScoredRollout
    """The teacher's continuation in its place."""

    @property
    def name(self) -> str:
        """Rollout and position."""
        return f"{self.found.rollout_id}@{self.position}"

    @property
    def position(self) -> int:
        """t, in the response."""
        return int(self.found.positions_W[0])

    @property
    def token_ids(self) -> Ints:
        """Prompt and y_<t."""
        return self.window.rollout.prompt_ids_P

    @property
    def teacher_ids(self) -> Ints:
        """The teacher's continuation."""
        return _teacher_ids(self.probe)

    @property
    def d_ot(self) -> float:
        """Between the student's own window and the teacher's continuation."""
        return float(self.probe.d_ot_W[0])


def divergence_threshold(probes: Sequence[ProbeSet], quantile: float) -> float:
    """Return the threshold of the verdict (D7) over all candidates at once.

    It is the quantile of the D_OT of the solved candidates. Raises ValueError when
    there are none.
    """
    distances = [probe.d_ot_W[solved_candidates(probe)] for probe in probes]
    return float(np.quantile(np.concatenate(distances), quantile))


def divergent_rows(found: CandidateSet, probe: ProbeSet, threshold: float) -> Ints:
    """Return the divergent windows that the token limit did not cut off.

    The highest token loss comes first.
    """
    # Sorted by loss, not by D_OT: a second measurement of the largest distances would
    # seem closer by regression to the mean alone.
    window = probe.student_ids_WK.shape[1]
    left_W = len(found.response_ids_N) - probe.positions_W
    whole_W = (left_W >= window) | (not found.truncated)
    rows = np.flatnonzero(divergent(probe, threshold) & whole_W)
    return rows[np.argsort(-probe.losses_W[rows], kind="stable")].astype(np.int32)


def make_prefixes(
    lab: Lab,
    rollouts: Sequence[Rollout],
    chosen: Sequence[tuple[CandidateSet, ProbeSet, int]],
) -> list[Prefix]:
    """Cut out the chosen rows and let the teacher read them."""
    prompts = {one.rollout_id: one.prompt_id for one in rollouts}
    single = [(_one_candidate(f, row), _one_window(p, row)) for f, p, row in chosen]
    windows, teacher_windows = (
        lab.score([_window_rollout(found, ids_of(probe)) for found, probe in single])
        for ids_of in (_student_ids, _teacher_ids)
    )
    return [
        Prefix(
            prompt_id=prompts[found.rollout_id],
            found=found,
            probe=probe,
            window=window,
            teacher_window=teacher_window,
        )
        for (found, probe), window, teacher_window in zip(
            single, windows, teacher_windows, strict=True
        )
    ]


def window_batch(
    prefix: Prefix,
    objective: ObjectiveConfig,
    *,
    with_plan: bool,
    on: WindowOf = "student",
) -> TrainBatch:
    """The micro-batch of a window: token loss alone, or with the plan's soft targets.

    The teacher's window differs from the teacher's continuation in nothing, so there
    the plan is the diagonal, and L_traj the cross entropy of the teacher's own tokens.
    """
    window = prefix.window if on == "student" else prefix.teacher_window
    rollout = window.rollout
    probe = replace(
        prefix.probe if on == "student" else _with_itself(prefix.probe),
        rollout_id=rollout.rollout_id,
        positions_W=np.zeros(1, np.int32),
        resampled=False,  # here the window is the response, whoever sampled it when
    )
    plain = objective.model_copy(update={"downweight": "none", "select": "all"})
    ((batch,),) = pack(
        [window],
        [probe] if with_plan else None,
        threshold=_EVERY_WINDOW,
        objective=plain,
        token_budget=len(rollout.prompt_ids_P) + len(rollout.response_ids_N),
        num_ranks=1,
        run_seed=0,
    )
    return batch


def regenerate(
    engine: GenerationEngine,
    prefixes: Sequence[Prefix],
    *,
    window: int,
    temperature: float,
    seed: int,
) -> list[Ints]:
    """`window` tokens from every prefix on, under the engine's present weights."""
    requests = [
        GenerationRequest(
            request_id=prefix.name,
            prompt_ids=prefix.token_ids,
            max_tokens=window,
            temperature=temperature,
            top_p=1.0,
            seed=derive_seed(seed, prefix.name, "regenerate"),
            num_top=0,
        )
        for prefix in prefixes
    ]
    answers = {one.request_id: one.token_ids_N for one in engine.generate(requests)}
    return [answers[prefix.name] for prefix in prefixes]


def _one_candidate(found: CandidateSet, row: int) -> CandidateSet:
    return replace(
        found,
        positions_W=found.positions_W[row : row + 1],
        losses_W=found.losses_W[row : row + 1],
        groups_W=found.groups_W[row : row + 1],
    )


def _one_window(probe: ProbeSet, row: int) -> ProbeSet:
    only = slice(row, row + 1)
    return ProbeSet(
        rollout_id=probe.rollout_id,
        policy_version=probe.policy_version,
        positions_W=probe.positions_W[only],
        losses_W=probe.losses_W[only],
        groups_W=probe.groups_W[only],
        resampled=probe.resampled,
        student_ids_WK=probe.student_ids_WK[only],
        num_student_W=probe.num_student_W[only],
        teacher_ids_WK=probe.teacher_ids_WK[only],
        num_teacher_W=probe.num_teacher_W[only],
        plan_WKK=probe.plan_WKK[only],
        d_ot_W=probe.d_ot_W[only],
        converged_W=probe.converged_W[only],
    )


def _with_itself(probe: ProbeSet) -> ProbeSet:
    """The teacher's continuation in both places."""
    count = int(probe.num_teacher_W[0])
    plan_WKK = np.zeros_like(probe.plan_WKK)
    plan_WKK[0, range(count), range(count)] = 1.0 / count
    return replace(
        probe,
        student_ids_WK=probe.teacher_ids_WK,
        num_student_W=probe.num_teacher_W,
        plan_WKK=plan_WKK,
        d_ot_W=np.zeros(1, np.float32),
        converged_W=np.ones(1, np.bool_),
    )


def _student_ids(probe: ProbeSet) -> Ints:
    return probe.student_ids_WK[0, : probe.num_student_W[0]]


def _teacher_ids(probe: ProbeSet) -> Ints:
    return probe.teacher_ids_WK[0, : probe.num_teacher_W[0]]


def _window_rollout(found: CandidateSet, ids_K: Ints) -> Rollout:
    position = int(found.positions_W[0])
    before_N = found.response_ids_N[:position]
    return Rollout(
        rollout_id=f"{found.rollout_id}@{position}",
        prompt_id=found.rollout_id,
        position=0,
        policy_version=found.policy_version,
        prompt_ids_P=np.concatenate([found.prompt_ids_P, before_N]),
        teacher_prompt_ids_P=np.concatenate([found.teacher_prompt_ids_P, before_N]),
        response_ids_N=ids_K,
        logp_N=np.zeros(0, np.float32),
        top_ids_NM=np.zeros((0, 0), np.int32),
        top_logp_NM=np.zeros((0, 0), np.float32),
        finish_reason="length",
    )


__all__ = [
    "Prefix",
    "WindowOf",
    "divergence_threshold",
    "divergent_rows",
    "make_prefixes",
    "regenerate",
    "window_batch",
]
