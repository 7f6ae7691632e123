"""The prober: transport between continuations; with an engine of its own, the teacher's
too.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from topd_ray.actors.teacher_decoder import TeacherDecoder
from topd_ray.actors.worker import Worker
from topd_ray.config import Config
from topd_ray.engines.open import open_generation
from topd_ray.messages import HIGH, CandidateSet, Ints, ProbeSet, Prompt, Rollout
from topd_ray.models.roles import resolve_student, resolve_teacher
from topd_ray.probe import ProbeActor
from topd_ray.records.receipts import (
    ContinueReceipt,
    ProbeReceipt,
    RewriteReceipt,
    Span,
)
from topd_ray.weights.buckets import WeightBucket, open_buckets
from topd_ray.windows import threshold_group


class ProbeWorker(Worker):
    """Solves transport on the CPU; holds a teacher engine where `probe.engine` is a
    section.
    """

    def __init__(self, config: Config, *, log: Path | None = None) -> None:
        super().__init__(log)
        folder = resolve_teacher(config)
        self._threshold_group = threshold_group(config.windows.divergence)
        self._engine = None
        if config.probe_engine:
            self._engine = open_generation(
                folder,
                config.probe_engine,
                max_model_len=config.teacher_context_tokens,
                seed=config.run.seed,
            )
            self._decoder = TeacherDecoder(config, folder, self._engine)
        if config.uses_probes:
            self._prober = ProbeActor(
                config.probe, folder, student_folder=resolve_student(config)
            )
        self._probes = config.uses_probes

    def ready(self) -> None:
        """Return once everything is loaded."""

    def continue_from(
        self, found: Sequence[CandidateSet]
    ) -> tuple[list[Ints], ContinueReceipt]:
        """The teacher's windows, by this worker's own engine."""
        return self._decoder.continue_from(found)

    def rewrite(
        self, rollouts: Sequence[Rollout], prompts: Sequence[Prompt]
    ) -> tuple[list[Rollout], RewriteReceipt]:
        """The teacher's rewrites, by this worker's own engine."""
        return self._decoder.rewrite(rollouts, prompts)

    def probe(
        self,
        found: Sequence[CandidateSet],
        teacher_windows: Sequence[Ints],
        fresh: Sequence[Ints] | None = None,
    ) -> tuple[list[ProbeSet], ProbeReceipt]:
        """Transport from the student's windows (or its `fresh` ones) to the
        teacher's.
        """
        began_s = time.time()
        probes = self._prober.probe(found, teacher_windows, fresh)
        return probes, ProbeReceipt(
            distances=_distances(probes, HIGH),
            threshold_distances=_distances(probes, self._threshold_group),
            num_unconverged=sum(int((~one.converged_W).sum()) for one in probes),
            span=Span.since(began_s),
        )

    def update(self, policy_version: int, *buckets: WeightBucket) -> None:
        """Self-distillation: become the student of `policy_version`."""
        if self._engine is not None:
            self._engine.load_weights(
                open_buckets(buckets, policy_version=policy_version)
            )
        if self._probes:
            self._prober.update(policy_version, buckets)

    def close(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            self._engine.close()


def _distances(probes: Sequence[ProbeSet], group: int) -> tuple[float, ...]:
    return tuple(float(d) for one in probes for d in one.d_ot_W[one.groups_W == group])
