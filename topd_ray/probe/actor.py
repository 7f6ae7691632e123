"""The probe: transport between the student's next K tokens and the teacher's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from topd_ray.config import ProbeConfig
from topd_ray.engines.tensors import to_torch
from topd_ray.errors import TopdError
from topd_ray.messages import PAD, CandidateSet, Flags, Floats, Ints, ProbeSet
from topd_ray.models.tensors import EMBEDDING_NAMES, input_embedding
from topd_ray.probe.continuations import ragged
from topd_ray.probe.cost import continuation_cost
from topd_ray.transport import TransportPlan, TransportProblem, exact, sinkhorn
from topd_ray.weights.buckets import WeightBucket, open_buckets


@dataclass(frozen=True, slots=True)
class _Solved:
    """Transport of all windows of a call."""

    plan_WKK: Floats
    d_ot_W: Floats
    converged_W: Flags

    def part(self, start: int, end: int) -> "_Solved":
        """Windows start..end alone."""
        return _Solved(
            self.plan_WKK[start:end],
            self.d_ot_W[start:end],
            self.converged_W[start:end],
        )


class ProbeActor:
    """CandidateSet, continuations -> ProbeSet. Keeps nothing between calls: any can be
    retried.
    """

    def __init__(
        self, config: ProbeConfig, folder: Path, *, student_folder: Path | None = None
    ) -> None:
        """`folder` is the teacher's; the student's is needed where its embeddings
        measure.
        """
        self._config = config
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._embedding_VD = _embedding(config, folder, student_folder).to(self._device)

    def probe(
        self,
        candidates: Sequence[CandidateSet],
        teacher_windows: Sequence[Ints],
        fresh: Sequence[Ints] | None = None,
    ) -> list[ProbeSet]:
        """One ProbeSet a rollout, in order; all windows are solved together.

        Both kinds of windows hold one (W, K) array a rollout, in the order of its
        positions, padded: `teacher_windows` are the teacher's continuations. D3: the
        student's is its own rollout from t on, or, with `probe.student: resample`, the
        `fresh` one. Raises TopdError where windows are missing, not asked for, or of
        another shape.
        """
        self._check(candidates, teacher_windows, fresh)
        none = np.zeros((0, self._config.window), np.int32)
        student_WK = self._student_windows(candidates, fresh)
        teacher_WK = np.concatenate([none, *teacher_windows])
        solved = self._transport(student_WK, teacher_WK)
        ends = np.cumsum([len(found.positions_W) for found in candidates])
        starts = [0, *ends[:-1]]
        return [
            _probe_set(
                found,
                student_WK[int(start) : int(end)],
                teacher_WK[int(start) : int(end)],
                solved.part(int(start), int(end)),
                resampled=fresh is not None,
            )
            for found, start, end in zip(candidates, starts, ends, strict=True)
        ]

    def update(self, policy_version: int, buckets: Sequence[WeightBucket]) -> None:
        """Self-distillation: with `probe.embedding: teacher` the ground cost follows
        the student.

        The student's table stays the one of its start. Raises TopdError for buckets
        that are not whole.
        """
        weights = dict(open_buckets(buckets, policy_version=policy_version))
        if self._config.embedding == "teacher":
            self._embedding_VD = _published_embedding(weights).to(self._device)

    def _check(
        self,
        candidates: Sequence[CandidateSet],
        teacher_windows: Sequence[Ints],
        fresh: Sequence[Ints] | None,
    ) -> None:
        if (fresh is not None) != (self._config.student == "resample"):
            raise TopdError(
                f"probe.student={self._config.student}, but the probe was asked "
                f"{'without' if fresh is None else 'with'} fresh continuations of the "
                "student; they are for probe.student=resample, and it needs them"
            )
        expected = [
            (len(found.positions_W), self._config.window) for found in candidates
        ]
        for whose, windows in (
            ("the teacher", teacher_windows),
            ("the student", fresh),
        ):
            if (
                windows is not None
                and (shapes := [one.shape for one in windows]) != expected
            ):
                raise TopdError(
                    f"continuations by {whose} of shapes {shapes} for candidates of"
                    f" {expected}: one row a candidate and probe.window tokens a row"
                )

    def _student_windows(
        self, candidates: Sequence[CandidateSet], fresh: Sequence[Ints] | None
    ) -> Ints:
        """The fresh ones, or the rollouts themselves from every candidate on."""
        width = self._config.window
        if fresh is not None:
            return np.concatenate([np.zeros((0, width), np.int32), *fresh])
        return ragged(
            [
                found.response_ids_N[t : t + width]
                for found in candidates
                for t in found.positions_W
            ],
            width=width,
        )

    def _transport(self, student_WK: Ints, teacher_WK: Ints) -> _Solved:
        """Plans of all windows. Identical continuations need no solver: the diagonal
        moves nothing.

        The entropic plan of such a window would cost a little more than 0 where
        embeddings of its tokens are close, and agreement is common enough to be worth
        not solving for.
        """
        num_windows, width = student_WK.shape
        same_W = (student_WK == teacher_WK).all(-1)
        weight_WK = (student_WK != PAD) / (student_WK != PAD).sum(-1, keepdims=True)
        solved = _Solved(
            plan_WKK=(np.eye(width) * weight_WK[:, None, :]).astype(np.float32),
            d_ot_W=np.zeros(num_windows, np.float32),
            converged_W=np.ones(num_windows, np.bool_),
        )
        plan = self._solve(student_WK[~same_W], teacher_WK[~same_W])
        solved.plan_WKK[~same_W] = plan.plan_WKL.float().cpu().numpy()
        solved.d_ot_W[~same_W] = plan.cost_W.float().cpu().numpy()
        solved.converged_W[~same_W] = plan.converged_W.cpu().numpy()
        return solved

    def _solve(self, student_WK: Ints, teacher_WK: Ints) -> TransportPlan:
        num_student_W = _lengths(student_WK).to(self._device)
        num_teacher_W = _lengths(teacher_WK).to(self._device)
        cost_WKK = continuation_cost(
            torch.from_numpy(student_WK).to(self._device),
            torch.from_numpy(teacher_WK).to(self._device),
            num_student_W,
            num_teacher_W,
            self._embedding_VD,
        )
        problem = TransportProblem(cost_WKK, num_student_W, num_teacher_W)
        if self._config.solver == "exact":
            return exact(problem)
        return sinkhorn(problem, epsilon=self._config.epsilon, way=self._config.solver)


def _embedding(
    config: ProbeConfig, folder: Path, student_folder: Path | None
) -> torch.Tensor:
    """D5: the table that measures the ground cost."""
    if config.embedding == "teacher":
        return input_embedding(folder)
    if student_folder is None:
        raise TopdError(
            "probe.embedding=student, but the probe was given no student's folder"
        )
    return input_embedding(student_folder)


def _published_embedding(weights: Mapping[str, NDArray[Any]]) -> torch.Tensor:
    for name in EMBEDDING_NAMES:
        if name in weights:
            return to_torch(weights[name])
    raise TopdError(
        f"published weights hold no input embedding ({' or '.join(EMBEDDING_NAMES)}),"
        " which probe.embedding=teacher follows; wrong model family?"
    )


def _probe_set(
    found: CandidateSet,
    student_WK: Ints,
    teacher_WK: Ints,
    solved: _Solved,
    *,
    resampled: bool,
) -> ProbeSet:
    return ProbeSet(
        rollout_id=found.rollout_id,
        policy_version=found.policy_version,
        positions_W=found.positions_W,
        losses_W=found.losses_W,
        groups_W=found.groups_W,
        resampled=resampled,
        student_ids_WK=student_WK,
        num_student_W=_lengths(student_WK).numpy().astype(np.int32),
        teacher_ids_WK=teacher_WK,
        num_teacher_W=_lengths(teacher_WK).numpy().astype(np.int32),
        plan_WKK=solved.plan_WKK,
        d_ot_W=solved.d_ot_W,
        converged_W=solved.converged_W,
    )


def _lengths(padded_WK: Ints) -> torch.Tensor:
    return torch.from_numpy((padded_WK != PAD).sum(-1))
