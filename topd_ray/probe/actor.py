"""The probe: transport between the student's next K tokens and the teacher's.

Axes as in messages.py, V vocabulary, D width of the embedding table.
"""

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
from topd_ray.models.vocabulary import num_ids
from topd_ray.probe.continuations import ragged
from topd_ray.probe.cost import continuation_cost
from topd_ray.transport import TransportPlan, TransportProblem, exact, sinkhorn
from topd_ray.weights.buckets import WeightBucket, open_buckets


@dataclass(frozen=True, slots=True)
class _Solved:
    """Plans of all windows of a call, with fields as in `ProbeSet`."""

    plan_WKK: Floats
    d_ot_W: Floats
    converged_W: Flags

    def part(self, start: int, end: int) -> "_Solved":
        """Return the windows from `start` up to `end`."""
        return _Solved(
            self.plan_WKK[start:end],
            self.d_ot_W[start:end],
            self.converged_W[start:end],
        )


class ProbeActor:
    """Turns candidates and continuations into probe sets.

    Its only state is the embedding table, so any call can be repeated.
    """

    def __init__(
        self,
        config: ProbeConfig,
        folder: Path,
        *,
        student_folder: Path | None = None,
        device: str = "cpu",
    ) -> None:
        """Load the embedding table of the ground cost (D5).

        Args:
            config: The section `probe` of the config.
            folder: The teacher's model folder.
            student_folder: The student's, needed for `probe.embedding: student`.
            device: Where transport is solved; see `Config.transport_device`.
        """
        self._config = config
        self._device = device
        self._num_ids = num_ids(folder)
        self._measure_by(_embedding(config, folder, student_folder))

    def probe(
        self,
        candidates: Sequence[CandidateSet],
        teacher_windows: Sequence[Ints],
        fresh: Sequence[Ints] | None = None,
    ) -> list[ProbeSet]:
        """Return the transport between the student's and the teacher's windows.

        D_OT = <gamma, C> between S_t..S_{t+K-1} and T_t..T_{t+K-1} (section 3 of the
        paper), with the cost of decision D5 and the solver of D6. The windows of all
        rollouts are solved together.

        Args:
            candidates: The positions t, one set a rollout.
            teacher_windows: The teacher's continuations, one padded (W, K) array a
                rollout, in the order of its positions.
            fresh: The student's continuations in the same form, for
                `probe.student: resample` (D3). None: the student's window is its own
                rollout from t on.

        Returns:
            One probe set a rollout, in the order of `candidates`.

        Raises:
            TopdError: `fresh` does not fit `probe.student`, or windows have another
                shape than (W, K).
        """
        self._check(candidates, teacher_windows, fresh)
        # np.concatenate refuses an empty list, and a call may bring no candidates.
        none = np.zeros((0, self._config.window), np.int32)
        student_WK = self._student_windows(candidates, fresh)
        teacher_WK = np.concatenate([none, *teacher_windows])
        solved = self._transport(student_WK, teacher_WK)
        sizes = [len(candidate_set.positions_W) for candidate_set in candidates]
        ends = np.cumsum(sizes).tolist()
        starts = [0, *ends][:-1]
        return [
            _probe_set(
                candidate_set,
                student_WK[start:end],
                teacher_WK[start:end],
                solved.part(start, end),
                resampled=fresh is not None,
            )
            for candidate_set, start, end in zip(candidates, starts, ends, strict=True)
        ]

    def ground_costs(self, student_WK: Ints, teacher_WK: Ints) -> TransportProblem:
        """Return the ground cost between the tokens of each window (D5).

        Args:
            student_WK: The student's continuations, PAD behind the end of each.
            teacher_WK: The teacher's continuations, likewise.
        """
        num_student_W = _lengths(student_WK).to(self._device)
        num_teacher_W = _lengths(teacher_WK).to(self._device)
        cost_WKK = continuation_cost(
            torch.from_numpy(student_WK).to(self._device),
            torch.from_numpy(teacher_WK).to(self._device),
            num_student_W,
            num_teacher_W,
            self._embedding_VD,
            centre_D=self._centre_D,
        )
        return TransportProblem(cost_WKK, num_student_W, num_teacher_W)

    def update(self, policy_version: int, buckets: Sequence[WeightBucket]) -> None:
        """Take the embedding table out of the student's published weights.

        Self-distillation calls this, where the student is the teacher too. With
        `probe.embedding: student` the table of the start stays. Raises TopdError when
        the buckets are incomplete or of another version.
        """
        weights = dict(open_buckets(buckets, policy_version=policy_version))
        if self._config.embedding == "teacher":
            self._measure_by(_published_embedding(weights))

    def _measure_by(self, embedding_VD: torch.Tensor) -> None:
        """Take a table without padding, and its mean row where costs are centred."""
        embedding_VD = embedding_VD[: self._num_ids]
        self._embedding_VD = embedding_VD.to(self._device)
        self._centre_D = None
        if self._config.centred:
            self._centre_D = embedding_VD.mean(0, dtype=torch.float32).to(self._device)

    def _check(
        self,
        candidates: Sequence[CandidateSet],
        teacher_windows: Sequence[Ints],
        fresh: Sequence[Ints] | None,
    ) -> None:
        if (fresh is not None) != (self._config.student == "resample"):
            raise TopdError(
                f"probe.student={self._config.student}, but the prober was called"
                f" {'without' if fresh is None else 'with'} fresh continuations of the"
                " student; they are for probe.student=resample, and it needs them"
            )
        expected = [
            (len(candidate_set.positions_W), self._config.window)
            for candidate_set in candidates
        ]
        for model, windows in (
            ("the teacher", teacher_windows),
            ("the student", fresh),
        ):
            if windows is None:
                continue
            shapes = [window_WK.shape for window_WK in windows]
            if shapes != expected:
                raise TopdError(
                    f"continuations by {model} of shapes {shapes} for candidates of"
                    f" {expected}: one row a candidate and probe.window tokens a row"
                )

    def _student_windows(
        self, candidates: Sequence[CandidateSet], fresh: Sequence[Ints] | None
    ) -> Ints:
        """Return the fresh windows, or the rollouts' own tokens from each position."""
        width = self._config.window
        if fresh is not None:
            return np.concatenate([np.zeros((0, width), np.int32), *fresh])
        windows: list[Ints] = []
        for candidate_set in candidates:
            response_N = candidate_set.response_ids_N
            windows += [response_N[t : t + width] for t in candidate_set.positions_W]
        return ragged(windows, width=width)

    def _transport(self, student_WK: Ints, teacher_WK: Ints) -> _Solved:
        """Return the plans of all windows."""
        # Identical continuations get the diagonal, which moves nothing. The entropic
        # plan of such a window would cost a little more than 0 where the embeddings of
        # its tokens are close, and agreement is common enough to save the time.
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
        problem = self.ground_costs(student_WK, teacher_WK)
        if self._config.solver == "exact":
            return exact(problem)
        return sinkhorn(problem, epsilon=self._config.epsilon, way=self._config.solver)


def _embedding(
    config: ProbeConfig, folder: Path, student_folder: Path | None
) -> torch.Tensor:
    """Return the table of the ground cost (D5)."""
    if config.embedding == "teacher":
        return input_embedding(folder)
    if student_folder is None:
        raise TopdError(
            "probe.embedding=student, but the prober has no folder of the student"
        )
    return input_embedding(student_folder)


def _published_embedding(weights: Mapping[str, NDArray[Any]]) -> torch.Tensor:
    """Return the input embedding among published weights."""
    for name in EMBEDDING_NAMES:
        if name in weights:
            return to_torch(weights[name])
    raise TopdError(
        f"published weights hold no input embedding ({' or '.join(EMBEDDING_NAMES)}),"
        " which probe.embedding=teacher follows; wrong model family?"
    )


def _probe_set(
    candidate_set: CandidateSet,
    student_WK: Ints,
    teacher_WK: Ints,
    solved: _Solved,
    *,
    resampled: bool,
) -> ProbeSet:
    return ProbeSet(
        rollout_id=candidate_set.rollout_id,
        policy_version=candidate_set.policy_version,
        positions_W=candidate_set.positions_W,
        losses_W=candidate_set.losses_W,
        groups_W=candidate_set.groups_W,
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
