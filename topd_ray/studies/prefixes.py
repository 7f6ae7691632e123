"""Divergent prefixes: one window of a rollout, cut out to be learned alone.

The window becomes the response of a rollout whose prompt is the original prompt and
y_<t: training on that rollout trains on the window and on nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from topd_ray.config import ObjectiveConfig
from topd_ray.engines.protocols import GenerationEngine, GenerationRequest
from topd_ray.messages import (
    HIGH,
    CandidateSet,
    Ints,
    ProbeSet,
    Rollout,
    ScoredRollout,
    TrainBatch,
)
from topd_ray.reports.correction_tables import WindowOf
from topd_ray.seeds import derive_seed
from topd_ray.studies.local_stages import LocalStages
from topd_ray.windows import divergent, pack

_EVERY_WINDOW = -1.0
"""A threshold that any D_OT exceeds: the prefix has been chosen already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """One divergent position of a rollout, with both windows that start there."""

    prompt_id: str
    candidate: CandidateSet
    """The candidate set of the rollout, with this position alone."""
    probe: ProbeSet
    """The probe set of the rollout, with this window alone."""
    window: ScoredRollout
    """The student's own window as the response to the prefix, scored by the teacher."""
    teacher_window: ScoredRollout
    """The teacher's continuation as the response to the same prefix, scored too."""

    @property
    def name(self) -> str:
        """Rollout and position, as in "p3/0@17"."""
        return f"{self.candidate.rollout_id}@{self.position}"

    @property
    def position(self) -> int:
        """Position t of the candidate in the response."""
        return int(self.candidate.positions_W[0])

    @property
    def loss(self) -> float:
        """Token loss at the candidate, in nats."""
        return float(self.candidate.losses_W[0])

    @property
    def token_ids(self) -> Ints:
        """Token ids of the prompt and of y_<t."""
        return self.window.rollout.prompt_ids_P

    @property
    def own_ids(self) -> Ints:
        """Token ids of the student's own window."""
        return self.window.rollout.response_ids_N

    @property
    def teacher_ids(self) -> Ints:
        """Token ids of the teacher's continuation."""
        return _teacher_ids(self.probe)

    @property
    def d_ot(self) -> float:
        """D_OT between the student's own window and the teacher's continuation."""
        return float(self.probe.d_ot_W[0])


def divergence_threshold(probe_sets: Sequence[ProbeSet], quantile: float) -> float:
    """Return the quantile of the D_OT of all candidates (D7, over the whole study).

    Raises ValueError without any candidate.
    """
    distances = []
    for probe_set in probe_sets:
        is_candidate_W = probe_set.converged_W & (probe_set.groups_W == HIGH)
        distances.append(probe_set.d_ot_W[is_candidate_W])
    return float(np.quantile(np.concatenate(distances), quantile))


def divergent_rows(
    candidates: CandidateSet, probe_set: ProbeSet, threshold: float
) -> Ints:
    """Return the windows above the threshold, highest token loss first.

    A window that the rollout's token limit has cut is left out.
    """
    window = probe_set.student_ids_WK.shape[1]
    left_W = len(candidates.response_ids_N) - probe_set.positions_W
    whole_W = (left_W >= window) | (not candidates.truncated)
    rows = np.flatnonzero(divergent(probe_set, threshold) & whole_W)
    # By loss, not by D_OT: of windows picked for their large distance, a second
    # continuation would seem closer even if nothing was learned.
    order = np.argsort(-probe_set.losses_W[rows], kind="stable")
    return rows[order].astype(np.int32)


def make_prefixes(
    stages: LocalStages,
    rollouts: Sequence[Rollout],
    chosen: Sequence[tuple[CandidateSet, ProbeSet, int]],
) -> list[Prefix]:
    """Return the chosen rows of candidate and probe sets as prefixes.

    The teacher scores both windows of each prefix.
    """
    prompts = {rollout.rollout_id: rollout.prompt_id for rollout in rollouts}
    candidates = [_one_candidate(whole, row) for whole, _, row in chosen]
    probes = [_one_window(whole, row) for _, whole, row in chosen]
    pairs = list(zip(candidates, probes, strict=True))
    own = [_window_rollout(single, _student_ids(probe)) for single, probe in pairs]
    teachers = [_window_rollout(single, _teacher_ids(probe)) for single, probe in pairs]
    return [
        Prefix(
            prompt_id=prompts[candidate.rollout_id],
            candidate=candidate,
            probe=probe,
            window=window,
            teacher_window=teacher_window,
        )
        for candidate, probe, window, teacher_window in zip(
            candidates, probes, stages.score(own), stages.score(teachers), strict=True
        )
    ]


def window_batch(
    prefix: Prefix,
    objective: ObjectiveConfig,
    *,
    with_plan: bool,
    on: WindowOf = "student",
) -> TrainBatch:
    """Return the micro-batch of a window: token loss alone, or with soft targets.

    `with_plan` adds the soft targets of the transport plan, `on` says whose window is
    trained on. The teacher's window equals the teacher's continuation, so there the
    plan is the diagonal, and L_traj the cross entropy of the teacher's own tokens.
    """
    window = prefix.window if on == "student" else prefix.teacher_window
    rollout = window.rollout
    probe = replace(
        prefix.probe if on == "student" else _with_itself(prefix.probe),
        rollout_id=rollout.rollout_id,
        positions_W=np.zeros(1, np.int32),
        resampled=False,  # the window is the response of this rollout
    )
    # Both weigh a token among those of its rollout or chunk, of which this is a piece.
    plain = objective.model_copy(update={"downweight": "none", "select": "all"})
    (batch,) = pack(
        [window],
        [probe] if with_plan else None,
        threshold=_EVERY_WINDOW,
        objective=plain,
        token_budget=len(rollout.prompt_ids_P) + len(rollout.response_ids_N),
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
    """Return `window` tokens from every prefix on, decoded with the engine's weights.

    The seed of a request depends on `seed` and the prefix alone.
    """
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
    # An engine returns generations in the order in which they end.
    ids_by_name = {
        generation.request_id: generation.token_ids_N
        for generation in engine.generate(requests)
    }
    return [ids_by_name[prefix.name] for prefix in prefixes]


def _one_candidate(candidates: CandidateSet, row: int) -> CandidateSet:
    only = slice(row, row + 1)
    return replace(
        candidates,
        positions_W=candidates.positions_W[only],
        losses_W=candidates.losses_W[only],
        groups_W=candidates.groups_W[only],
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
    """Return the probe with the teacher's continuation in the student's place too."""
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


def _window_rollout(candidate: CandidateSet, ids_K: Ints) -> Rollout:
    position = int(candidate.positions_W[0])
    before_N = candidate.response_ids_N[:position]
    return Rollout(
        rollout_id=f"{candidate.rollout_id}@{position}",
        prompt_id=candidate.rollout_id,
        position=0,
        policy_version=candidate.policy_version,
        prompt_ids_P=np.concatenate([candidate.prompt_ids_P, before_N]),
        # The teacher reads y_<t behind its own prompt, which may be longer.
        teacher_prompt_ids_P=np.concatenate([candidate.teacher_prompt_ids_P, before_N]),
        response_ids_N=ids_K,
        logp_O=np.zeros(0, np.float32),
        top_ids_OM=np.zeros((0, 0), np.int32),
        top_logp_OM=np.zeros((0, 0), np.float32),
        # A window is cut out of a response: its last token ends nothing.
        finish_reason="length",
    )


__all__ = [
    "Prefix",
    "divergence_threshold",
    "divergent_rows",
    "make_prefixes",
    "regenerate",
    "window_batch",
]
