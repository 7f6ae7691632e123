"""The worker that holds one teacher engine."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from topd_ray.actors.decoding_worker import DecodingWorker
from topd_ray.candidates import find_candidates
from topd_ray.config import Config
from topd_ray.engines.open import open_teacher
from topd_ray.messages import (
    HIGH,
    LOW,
    CandidateSet,
    Rollout,
    ScoredRollout,
)
from topd_ray.models.roles import resolve_teacher
from topd_ray.records.receipts import (
    ScoreReceipt,
    Span,
)
from topd_ray.teacher import TeacherActor
from topd_ray.weights.buckets import WeightBucket
from topd_ray.windows import threshold_group


class TeacherWorker(DecodingWorker):
    """Scores rollouts, picks candidates, continues from them, rewrites.

    Its methods may be called from several threads at once.
    """

    def __init__(self, config: Config, *, log: Path | None = None) -> None:
        super().__init__(config, log)
        folder = resolve_teacher(config)
        self._engine = open_teacher(
            folder,
            config.teacher.engine,
            max_model_len=config.teacher_context_tokens,
            seed=config.run.seed,
        )
        self._decode_with(self._engine, folder)
        self._actor = TeacherActor(
            config.teacher, config.candidates, folder, lambda: self._engine
        )
        self._refuse_mismatch()
        group = threshold_group(config.windows.divergence)
        # D7 low_loss_q75 judges by as many low-loss windows, so they are probed too.
        self._controls = [LOW] if group == LOW else []

    def score(
        self, rollouts: Sequence[Rollout]
    ) -> tuple[*tuple[ScoredRollout, ...], list[CandidateSet], ScoreReceipt]:
        """Return each scored rollout for itself, their candidates, and the receipt.

        The driver sends a scored rollout to the one learner rank that trains on it.
        """
        began_s = time.monotonic()
        scored = self._actor.score(rollouts)
        candidate_sets = []
        if self._config.uses_probes:
            candidate_sets = [self._candidates(rollout) for rollout in scored]
        receipt = ScoreReceipt(
            num_tokens=sum(len(rollout.token_loss_N) for rollout in scored),
            num_sequence_tokens=tuple(
                len(rollout.prompt_ids_P) + len(rollout.response_ids_N)
                for rollout in rollouts
            ),
            num_candidates=sum(
                int((candidates.groups_W == HIGH).sum())
                for candidates in candidate_sets
            ),
            loss_sum=float(
                sum(rollout.token_loss_N.sum(dtype=np.float64) for rollout in scored)
            ),
            span=Span.since(began_s),
        )
        return (*scored, candidate_sets, receipt)

    def update(self, policy_version: int, *buckets: WeightBucket) -> Span:
        """Load the student's weights of `policy_version` (self-distillation)."""
        began_s = time.monotonic()
        self._actor.update(policy_version, buckets)
        self._refuse_mismatch()
        return Span.since(began_s)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def _refuse_mismatch(self) -> None:
        # The states of the fake engine are noise, which no head turns into its tokens.
        if self._config.teacher.engine.backend != "fake":
            self._actor.refuse_mismatch(self._engine)

    def _candidates(self, scored: ScoredRollout) -> CandidateSet:
        return find_candidates(
            scored,
            self._config.candidates,
            controls=self._controls,
            run_seed=self._config.run.seed,
        )
