"""The teacher: reads rollouts, picks what is worth a probe, and says how it would go
on.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from topd_ray.actors.teacher_decoder import TeacherDecoder
from topd_ray.actors.worker import Worker
from topd_ray.candidates import find_candidates
from topd_ray.config import Config
from topd_ray.engines.open import open_teacher
from topd_ray.messages import (
    HIGH,
    LOW,
    CandidateSet,
    Ints,
    Prompt,
    Rollout,
    ScoredRollout,
)
from topd_ray.models.roles import resolve_teacher
from topd_ray.records.receipts import (
    ContinueReceipt,
    RewriteReceipt,
    ScoreReceipt,
    Span,
)
from topd_ray.teacher import TeacherActor
from topd_ray.weights.buckets import WeightBucket
from topd_ray.windows import threshold_group


class TeacherWorker(Worker):
    """Holds one teacher engine. Its methods may be called from several threads at
    once.
    """

    def __init__(self, config: Config, *, log: Path | None = None) -> None:
        super().__init__(log)
        folder = resolve_teacher(config)
        self._config = config
        self._engine = open_teacher(
            folder,
            config.teacher.engine,
            max_model_len=config.teacher_context_tokens,
            seed=config.run.seed,
        )
        self._decoder = TeacherDecoder(config, folder, self._engine)
        self._actor = TeacherActor(
            config.teacher, config.candidates, folder, lambda: self._engine
        )
        self._controls = (
            [LOW] if threshold_group(config.windows.divergence) == LOW else []
        )

    def ready(self) -> None:
        """Return once the engine is loaded."""

    def score(
        self, rollouts: Sequence[Rollout]
    ) -> tuple[list[ScoredRollout], list[CandidateSet], ScoreReceipt]:
        """Scored rollouts for the learner, candidates for the probe workers."""
        began_s = time.time()
        scored = self._actor.score(rollouts)
        found = (
            [self._candidates(one) for one in scored]
            if self._config.uses_probes
            else []
        )
        return (
            scored,
            found,
            ScoreReceipt(
                num_tokens=sum(len(one.token_loss_N) for one in scored),
                num_candidates=sum(int((one.groups_W == HIGH).sum()) for one in found),
                loss_sum=float(
                    sum(one.token_loss_N.sum(dtype=np.float64) for one in scored)
                ),
                span=Span.since(began_s),
            ),
        )

    def continue_from(
        self, found: Sequence[CandidateSet]
    ) -> tuple[list[Ints], ContinueReceipt]:
        """The teacher's windows of candidates it has just scored: their prefixes are
        cached.
        """
        return self._decoder.continue_from(found)

    def rewrite(
        self, rollouts: Sequence[Rollout], prompts: Sequence[Prompt]
    ) -> tuple[list[Rollout], RewriteReceipt]:
        """The teacher's rewrites of a chunk."""
        return self._decoder.rewrite(rollouts, prompts)

    def update(self, policy_version: int, *buckets: WeightBucket) -> None:
        """Self-distillation: become the student of `policy_version`."""
        self._actor.update(policy_version, buckets)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def _candidates(self, scored: ScoredRollout) -> CandidateSet:
        return find_candidates(
            scored,
            self._config.candidates,
            controls=self._controls,
            run_seed=self._config.run.seed,
        )
