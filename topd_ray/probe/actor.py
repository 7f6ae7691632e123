"""The probe: the student's own next K tokens, the teacher's, and the transport between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from topd_ray.config import ProbeConfig
from topd_ray.engines.protocols import GenerationEngine, GenerationRequest
from topd_ray.messages import PAD, CandidateSet, Flags, Floats, Ints, ProbeSet
from topd_ray.probe.cost import continuation_cost
from topd_ray.seeds import derive_seed
from topd_ray.transport import TransportPlan, TransportProblem, exact, sinkhorn
from topd_ray.weights.tensors import input_embedding


@dataclass(frozen=True, slots=True)
class _Solved:
    """Transport of all windows of a call."""

    plan_WKK: Floats
    d_ot_W: Floats
    converged_W: Flags


class ProbeActor:
    """CandidateSet -> ProbeSet. Keeps nothing between calls, so any call can be retried."""

    def __init__(
        self,
        config: ProbeConfig,
        folder: Path,
        open_engine: Callable[[], GenerationEngine],
        *,
        run_seed: int,
    ) -> None:
        self._config, self._run_seed = config, run_seed
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        # D5: the teacher's, which never moves
        self._embedding_VD = input_embedding(folder).to(self._device)
        self._engine = open_engine()

    def probe(self, candidates: Sequence[CandidateSet]) -> list[ProbeSet]:
        """One ProbeSet a rollout, in order; all windows are decoded and solved together.

        D3: the student's continuation is its own rollout from t on. D4: the teacher's is decoded
        from the same prefix, greedily unless a temperature is set.
        """
        student_WK = _ragged(
            [
                found.response_ids_N[t : t + self._config.window]
                for found in candidates
                for t in found.positions_W
            ],
            width=self._config.window,
        )
        teacher_WK = _ragged(self._continue(candidates), width=self._config.window)
        solved = self._transport(student_WK, teacher_WK)
        ends = np.cumsum([len(found.positions_W) for found in candidates])
        starts = [0, *ends[:-1]]
        return [
            _probe_set(found, student_WK, teacher_WK, solved, slice(int(start), int(end)))
            for found, start, end in zip(candidates, starts, ends, strict=True)
        ]

    def _continue(self, candidates: Sequence[CandidateSet]) -> list[Ints]:
        """Teacher's continuation of every candidate, in the order of candidates and positions."""
        requests = [
            GenerationRequest(
                request_id=f"{found.rollout_id}@{t}",
                prompt_ids=np.concatenate([found.prompt_ids_P, found.response_ids_N[:t]]),
                max_tokens=self._teacher_tokens(found, int(t)),
                temperature=self._config.teacher_temperature,
                top_p=self._config.teacher_top_p,
                seed=derive_seed(self._run_seed, found.rollout_id, int(t), "probe"),
                num_top=0,
            )
            for found in candidates
            for t in found.positions_W
        ]
        by_id = {answer.request_id: answer for answer in self._engine.generate(requests)}
        return [by_id[request.request_id].token_ids_N for request in requests]

    def _teacher_tokens(self, found: CandidateSet, position: int) -> int:
        """K; no more than the student had, where the token limit cut its window short.

        Otherwise a student that says what its teacher says would seem to diverge at its limit.
        """
        left = len(found.response_ids_N) - position
        return min(self._config.window, left) if found.truncated else self._config.window

    def _transport(self, student_WK: Ints, teacher_WK: Ints) -> _Solved:
        """Plans of all windows. Identical continuations need no solver: the diagonal moves nothing.

        The entropic plan of such a window would cost a little more than 0 where embeddings of its
        tokens are close, and agreement is common enough to be worth not solving for.
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
        return sinkhorn(problem, epsilon=self._config.epsilon)


def _probe_set(
    found: CandidateSet, student_WK: Ints, teacher_WK: Ints, solved: _Solved, mine: slice
) -> ProbeSet:
    return ProbeSet(
        rollout_id=found.rollout_id,
        policy_version=found.policy_version,
        positions_W=found.positions_W,
        losses_W=found.losses_W,
        student_ids_WK=student_WK[mine],
        num_student_W=_lengths(student_WK[mine]).numpy().astype(np.int32),
        teacher_ids_WK=teacher_WK[mine],
        num_teacher_W=_lengths(teacher_WK[mine]).numpy().astype(np.int32),
        plan_WKK=solved.plan_WKK[mine],
        d_ot_W=solved.d_ot_W[mine],
        converged_W=solved.converged_W[mine],
    )


def _ragged(sequences: Sequence[Ints], *, width: int) -> Ints:
    padded_WK = np.full((len(sequences), width), PAD, dtype=np.int32)
    for row, sequence in enumerate(sequences):
        padded_WK[row, : len(sequence)] = sequence
    return padded_WK


def _lengths(padded_WK: Ints) -> torch.Tensor:
    return torch.from_numpy((padded_WK != PAD).sum(-1))
