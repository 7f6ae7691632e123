"""The worker that holds one learner rank."""

import socket
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import ray

from topd_ray.actors.worker import Worker
from topd_ray.config import Config, Transport
from topd_ray.engines.protocols import TransferGroup, TransferPiece, WakePart
from topd_ray.engines.rendezvous import meet, open_listener
from topd_ray.learner import LearnerActor
from topd_ray.messages import (
    ProbeSet,
    Rollout,
    ScoredRollout,
    StepReport,
    Takeover,
)
from topd_ray.models.roles import resolve_student, resolve_teacher
from topd_ray.models.tensors import output_head, read_weights
from topd_ray.records.bad_step import write_rollouts
from topd_ray.records.receipts import LearnReceipt, Span
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.step_recorder import StepRecorder
from topd_ray.takeover import taken_over
from topd_ray.weights.buckets import (
    BUCKET_BYTES,
    WeightBucket,
    in_buckets,
    open_buckets,
)
from topd_ray.weights.export import export_folder
from topd_ray.windows import divergent, pack


class LearnerWorker(Worker):
    """Packs its share of each round, trains on it, and publishes the weights."""

    def __init__(
        self,
        config: Config,
        *,
        rank: int,
        total_steps: int,
        folder: RunFolder | None,
        log: Path | None = None,
    ) -> None:
        """Take the rank; windows and rollouts are recorded in `folder`, if any."""
        super().__init__(log)
        self._config = config
        self._rank = rank
        self._total_steps = total_steps
        self._student_folder = resolve_student(config)
        # Ranks that share sequences have the same probed windows: the first counts.
        self._counts_windows = rank % config.learner.sequence_parallel == 0
        self._recorder = (
            StepRecorder(
                config.records,
                folder,
                index=rank // config.learner.sequence_parallel,
                num_recorders=(
                    config.learner.num_ranks // config.learner.sequence_parallel
                ),
                rank=rank,
            )
            if folder and self._counts_windows
            else None
        )
        self._listener: socket.socket | None = None
        self._engines_listener: socket.socket | None = None
        self._learner: LearnerActor | None = None

    def rendezvous(self) -> tuple[str, int]:
        """Open a port on this node, where the ranks meet; return its address."""
        self._listener = open_listener("")
        return _own_address(), int(self._listener.getsockname()[1])

    def start(self, address: str, port: int) -> None:
        """Join the process group and load the student; every rank must be called."""
        teacher_head_VE = None
        # The teacher sends hidden states; its head turns them into log-probabilities.
        if self._config.teacher.signal == "hidden":
            teacher_head_VE = output_head(resolve_teacher(self._config))
        self._learner = LearnerActor(
            self._config.learner,
            objective=self._config.objective,
            teacher=self._config.teacher,
            student_folder=self._student_folder,
            teacher_head_VE=teacher_head_VE,
            rank=self._rank,
            store=meet(
                address,
                port,
                world_size=self._config.learner.num_ranks,
                listener=self._listener,
            ),
            total_steps=self._total_steps,
            seed=self._config.run.seed,
            max_staleness=self._config.rollout.max_staleness,
        )

    def accumulate(
        self, threshold: float, *items: ScoredRollout | ProbeSet | Takeover | None
    ) -> LearnReceipt:
        """Add the gradient of this rank's share; every rank must be called.

        The share may be empty. Its windows and rollouts are recorded.

        `items` are the scored rollouts and then, where the method looks ahead, their
        probed windows and takeovers: Ray resolves references among the arguments of a
        call only. A rollout without a fork has None for a takeover.
        """
        began_s = time.monotonic()
        takeovers = {
            item.rollout_id: item for item in items if isinstance(item, Takeover)
        }
        scored = [item for item in items if isinstance(item, ScoredRollout)]
        trained = [
            taken_over(item, takeovers.get(item.rollout.rollout_id)) for item in scored
        ]
        probe_sets = [item for item in items if isinstance(item, ProbeSet)]
        packed = partial(
            pack,
            trained,
            probe_sets if self._config.uses_probes else None,
            threshold=threshold,
            objective=self._config.objective,
            token_budget=self._config.windows.token_budget,
            run_seed=self._config.run.seed,
        )
        batches = packed()
        fullest = self._actor.fullest(len(batches))
        if len(batches) < fullest:
            # Smaller micro-batches, so that no rank waits in an empty one.
            batches = packed(at_least=fullest)
        sums = self._actor.accumulate(batches)
        if self._recorder:
            self._recorder.add(scored, probe_sets, takeovers, threshold)
        return LearnReceipt(
            num_tokens=sums.num_tokens,
            sums=sums,
            num_divergent=sum(
                int(divergent(probe_set, threshold).sum())
                for probe_set in probe_sets
                if self._counts_windows
            ),
            span=Span.since(began_s),
        )

    def step(self, skip: bool) -> StepReport:
        """Update the weights with what was accumulated; every rank must be called."""
        report = self._actor.step(skip=skip)
        if self._recorder:
            self._recorder.write(report.step, self._actor.likeliest_of_teacher)
        return report

    def abandon_step(self) -> None:
        """Drop what was accumulated since the last step; the run is about to end."""
        self._actor.abandon_step()
        if self._recorder:
            self._recorder.clear()

    def publish(self) -> Iterator[WeightBucket]:
        """Yield the weights in buckets on rank 0; other ranks take part, yield
        nothing.
        """
        buckets = self._actor.publish(BUCKET_BYTES)
        if self._rank == 0:
            yield from buckets
        else:
            # Gathering a sharded weight is collective: every rank must take part.
            for _ in buckets:
                pass

    def meet_engines(self) -> tuple[str, int]:
        """Open a port where the rollout engines meet rank 0; return its address."""
        self._engines_listener = open_listener("")
        return _own_address(), int(self._engines_listener.getsockname()[1])

    def open_sender(
        self, transport: Transport, group: TransferGroup, timeout_s: float
    ) -> None:
        """Join the rollout engines in a group; rank 0 waits until all have joined."""
        listener = self._engines_listener
        self._engines_listener = None
        self._actor.open_sender(
            transport, group, listener=listener, timeout_s=timeout_s
        )

    def next_piece(self, is_first: bool) -> TransferPiece | None:
        """Return the next piece of the weights; None at their end."""
        return self._actor.next_piece(is_first=is_first)

    def close_sender(self) -> None:
        """Leave the group; called while `next_piece` may wait in it."""
        self._actor.close_sender()

    def follow_teacher(self) -> None:
        """Make the student's present output head the teacher's (self-distillation)."""
        self._actor.follow_teacher()

    def save(self, folder: Path) -> None:
        """Write this rank's part of the learner's state."""
        self._actor.save(folder)

    def load(self, folder: Path) -> None:
        """Read this rank's part of the learner's state."""
        self._actor.load(folder)

    def save_teacher(
        self, folder: Path, policy_version: int, *buckets: WeightBucket
    ) -> None:
        """Write the weights that the teacher holds as a model folder; rank 0 alone."""
        weights = open_buckets(buckets, policy_version=policy_version)
        export_folder(weights, source=self._student_folder, target=folder)

    def load_teacher(self, folder: Path, policy_version: int) -> Iterator[WeightBucket]:
        """Yield what `save_teacher` wrote, on rank 0; every rank takes its output
        head.
        """
        if self._config.teacher.signal == "hidden":
            self._actor.set_teacher_head(output_head(folder))
        if self._rank == 0:
            yield from in_buckets(
                read_weights(folder),
                policy_version=policy_version,
                max_bytes=BUCKET_BYTES,
            )

    def export(self, folder: Path) -> None:
        """Write the student as a model folder on rank 0; every rank must be called."""
        self._actor.export(folder)

    def dump(self, folder: Path, *chunks: Sequence[Rollout]) -> None:
        """Write a step's rollouts for `topd replay`; rank 0 alone is called."""
        write_rollouts(folder, list(chain.from_iterable(chunks)))

    def sleep(self) -> None:
        """See `Worker`; only between two steps."""
        self._actor.sleep()

    def wake(self, part: WakePart = "all") -> None:
        """See `Worker`; it always wakes as a whole."""
        del part
        self._actor.wake()

    def close(self) -> None:
        """Leave the process group."""
        if self._learner is not None:
            self._learner.close()

    @property
    def _actor(self) -> LearnerActor:
        assert self._learner is not None, "start() comes first"
        return self._learner


def _own_address() -> str:
    """Return the address under which other nodes reach this one."""
    if not ray.is_initialized():
        return "127.0.0.1"
    address: str = ray.util.get_node_ip_address()
    return address
