"""One learner rank, from scored and probed chunks to new weights."""

import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray

from topd_ray.actors.worker import Worker
from topd_ray.config import Config
from topd_ray.learner import LearnerActor
from topd_ray.messages import LossSums, ProbeSet, Rollout, ScoredRollout, StepReport
from topd_ray.models.roles import resolve_student, resolve_teacher
from topd_ray.models.tensors import output_head
from topd_ray.records.bad_step import write_rollouts
from topd_ray.records.receipts import LearnReceipt, Span
from topd_ray.records.window_file import WindowRecorder
from topd_ray.weights.buckets import BUCKET_BYTES, WeightBucket
from topd_ray.windows import divergent, pack


class LearnerWorker(Worker):
    """Holds one learner rank."""

    def __init__(
        self,
        config: Config,
        *,
        rank: int,
        total_steps: int,
        windows_folder: Path | None,
        log: Path | None = None,
    ) -> None:
        super().__init__(log)
        self._config, self._rank, self._total_steps = config, rank, total_steps
        self._recorder = (
            WindowRecorder(windows_folder) if windows_folder and rank == 0 else None
        )
        self._learner: LearnerActor | None = None

    def rendezvous(self) -> tuple[str, int]:
        """Address and free port of this rank's node, where the process group meets."""
        address = (
            ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
        )
        with socket.socket() as probe:
            probe.bind(("", 0))
            return address, int(probe.getsockname()[1])

    def start(self, master_addr: str, master_port: int) -> None:
        """Join the process group and load the student; every rank must be called."""
        hidden = self._config.teacher.signal == "hidden"
        self._learner = LearnerActor(
            self._config.learner,
            objective=self._config.objective,
            teacher=self._config.teacher,
            student_folder=resolve_student(self._config),
            teacher_head_VE=(
                output_head(resolve_teacher(self._config)) if hidden else None
            ),
            rank=self._rank,
            master_addr=master_addr,
            master_port=master_port,
            total_steps=self._total_steps,
            seed=self._config.run.seed,
            max_staleness=self._config.rollout.max_staleness,
        )

    def accumulate(
        self,
        scored: Sequence[ScoredRollout],
        probes: Sequence[ProbeSet] | None,
        threshold: float,
    ) -> LearnReceipt:
        """Pack the chunk, add this rank's share to the gradient; rank 0 records the
        windows.
        """
        began_s = time.time()
        batches = pack(
            scored,
            probes,
            threshold=threshold,
            objective=self._config.objective,
            token_budget=self._config.windows.token_budget,
            num_ranks=self._config.learner.num_ranks,
            run_seed=self._config.run.seed,
        )
        sums = LossSums()
        for batch in batches[self._rank]:
            sums = sums + self._rank_actor.accumulate(batch)
        if self._recorder:
            self._recorder.add(probes or (), threshold)
        return LearnReceipt(
            sums=sums,
            num_divergent=sum(
                int(divergent(one, threshold).sum()) for one in probes or ()
            ),
            span=Span.since(began_s),
        )

    def step(self, *, skip: bool = False) -> StepReport:
        """Update the weights with what was accumulated; every rank must be called."""
        report = self._rank_actor.step(skip=skip)
        if self._recorder:
            self._recorder.write(report.step)
        return report

    def publish(self) -> Iterator[WeightBucket]:
        """The weights in buckets (rank 0; the other ranks take part and yield
        nothing).
        """
        buckets = self._rank_actor.publish(BUCKET_BYTES)
        if self._rank == 0:
            yield from buckets
        else:
            for _ in buckets:
                pass

    def follow_teacher(self) -> None:
        """Self-distillation: the teacher's output head becomes the student's present
        one.
        """
        self._rank_actor.follow_teacher()

    def save(self, folder: Path) -> None:
        """Write this rank's shard."""
        self._rank_actor.save(folder)

    def load(self, folder: Path) -> None:
        """Read this rank's shard."""
        self._rank_actor.load(folder)

    def export(self, folder: Path) -> None:
        """Write the student as a Hugging Face folder (rank 0; every rank must be
        called).
        """
        self._rank_actor.export(folder)

    def dump(self, folder: Path, *chunks: Sequence[Rollout]) -> None:
        """Keep a step's rollouts for `topd replay`; rank 0 alone is called."""
        write_rollouts(folder, [rollout for chunk in chunks for rollout in chunk])

    def close(self) -> None:
        """Leave the process group."""
        if self._learner is not None:
            self._learner.close()

    @property
    def _rank_actor(self) -> LearnerActor:
        assert self._learner is not None, "start() comes first"
        return self._learner
