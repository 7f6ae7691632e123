"""The worker that solves transport, and decodes as the teacher where it has an
engine.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from topd_ray.actors.decoding_worker import DecodingWorker
from topd_ray.config import Config
from topd_ray.engines.open import open_generation
from topd_ray.engines.protocols import WakePart
from topd_ray.messages import HIGH, CandidateSet, Ints, ProbeSet
from topd_ray.models.roles import resolve_student, resolve_teacher
from topd_ray.probe import ProbeActor
from topd_ray.records.receipts import (
    ProbeReceipt,
    Span,
)
from topd_ray.weights.buckets import WeightBucket, open_buckets
from topd_ray.windows import solved_distances, threshold_group


class ProbeWorker(DecodingWorker):
    """Solves transport; has an engine where `probe.engine` is a section."""

    def __init__(
        self, config: Config, *, sleeps: bool = False, log: Path | None = None
    ) -> None:
        super().__init__(config, log)
        folder = resolve_teacher(config)
        self._threshold_group = threshold_group(config.windows.divergence)
        self._engine = None
        if config.probe_engine:
            self._engine = open_generation(
                folder,
                config.probe_engine,
                max_model_len=config.teacher_context_tokens,
                seed=config.run.seed,
                sleeps=sleeps,
            )
            self._decode_with(self._engine, folder)
        # A worker of a method that only rewrites loads no embedding.
        if config.uses_probes:
            self._prober = ProbeActor(
                config.probe,
                folder,
                student_folder=resolve_student(config),
                device=config.transport_device,
            )
        self._uses_probes = config.uses_probes

    def probe(
        self,
        candidate_sets: Sequence[CandidateSet],
        teacher_windows: Sequence[Ints],
        student_windows: Sequence[Ints] | None = None,
    ) -> tuple[*tuple[ProbeSet, ...], ProbeReceipt]:
        """Return each rollout's probed windows for itself, and the receipt.

        `student_windows` are fresh ones (D3); None: the rollouts' own tokens.
        """
        began_s = time.monotonic()
        probe_sets = self._prober.probe(
            candidate_sets, teacher_windows, student_windows
        )
        receipt = ProbeReceipt(
            distances=solved_distances(probe_sets, HIGH),
            threshold_distances=solved_distances(probe_sets, self._threshold_group),
            num_windows=sum(len(probe_set.converged_W) for probe_set in probe_sets),
            num_unconverged=sum(
                int((~probe_set.converged_W).sum()) for probe_set in probe_sets
            ),
            span=Span.since(began_s),
        )
        return (*probe_sets, receipt)

    def update(self, policy_version: int, *buckets: WeightBucket) -> Span:
        """Load the student's weights of `policy_version` (self-distillation)."""
        began_s = time.monotonic()
        if self._engine is not None:
            self._engine.load_weights(
                open_buckets(buckets, policy_version=policy_version)
            )
        if self._uses_probes:
            self._prober.update(policy_version, buckets)
        return Span.since(began_s)

    def sleep(self) -> None:
        """See `Worker`."""
        if self._engine is not None:
            self._engine.sleep()

    def wake(self, part: WakePart = "all") -> None:
        """See `Worker`."""
        if self._engine is not None:
            self._engine.wake(part)

    def close(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            self._engine.close()
