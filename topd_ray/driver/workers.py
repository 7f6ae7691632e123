"""Stages put together into the four kinds of actor. Plain classes: spawn.py makes them remote.

Each method returns its payload first and a receipt second; the driver fetches receipts only.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from topd_ray.candidates import find_candidates
from topd_ray.config import Config, EngineConfig
from topd_ray.driver.receipts import LearnReceipt, ProbeReceipt, RolloutReceipt, ScoreReceipt
from topd_ray.driver.recorder import WindowRecorder
from topd_ray.engines.open import open_generation, open_scoring
from topd_ray.engines.protocols import GenerationEngine
from topd_ray.evaluation import Accuracy, ask
from topd_ray.learner import LearnerActor
from topd_ray.messages import (
    CandidateSet,
    LossSums,
    ProbeSet,
    Prompt,
    Rollout,
    ScoredRollout,
    StepReport,
)
from topd_ray.probe import ProbeActor
from topd_ray.rollout import RolloutActor
from topd_ray.teacher import TeacherActor
from topd_ray.weights.buckets import WeightBucket
from topd_ray.weights.folder import resolve_model
from topd_ray.weights.tensors import output_head
from topd_ray.windows import divergent, pack


class RolloutWorker:
    """Holds one student rollout engine."""

    def __init__(self, config: Config) -> None:
        self._folder = resolve_model(config.learner.model)
        self._actor = RolloutActor(
            config.rollout,
            _opener(self._folder, config.rollout.engine, config),
            run_seed=config.run.seed,
        )
        self._max_answer_tokens = (
            config.evaluation.max_response_tokens or config.rollout.max_response_tokens
        )

    def ready(self) -> None:
        """Return once the engine is loaded."""

    def roll_out(
        self, prompts: Sequence[Prompt], *, policy_version: int
    ) -> Iterator[list[Rollout] | RolloutReceipt]:
        """Alternate chunks and their receipts."""
        start = time.perf_counter()
        for chunk in self._actor.roll_out(prompts, policy_version=policy_version):
            yield chunk
            now = time.perf_counter()
            yield RolloutReceipt(
                rollout_ids=tuple(rollout.rollout_id for rollout in chunk),
                policy_version=policy_version,
                num_tokens=sum(len(rollout.response_ids_N) for rollout in chunk),
                num_truncated=sum(rollout.finish_reason == "length" for rollout in chunk),
                busy_s=now - start,
            )
            start = time.perf_counter()

    def update(self, policy_version: int, *buckets: WeightBucket) -> float:
        """Take the weights of `policy_version`; seconds it took."""
        start = time.perf_counter()
        self._actor.update(policy_version, buckets)
        return time.perf_counter() - start

    def evaluate(self, problems: Sequence[Prompt]) -> Accuracy:
        """Greedy accuracy of the current weights."""
        return ask(
            self._actor.engine, problems, folder=self._folder, max_tokens=self._max_answer_tokens
        )


class TeacherWorker:
    """Holds one teacher scoring engine, and picks the candidates from what it scored."""

    def __init__(self, config: Config) -> None:
        folder = resolve_model(config.teacher.model)
        self._config = config
        self._actor = TeacherActor(
            config.teacher,
            config.candidates,
            folder,
            lambda: open_scoring(
                folder, config.teacher.engine, max_model_len=config.context_tokens
            ),
        )

    def ready(self) -> None:
        """Return once the engine is loaded."""

    def score(
        self, rollouts: Sequence[Rollout]
    ) -> tuple[list[ScoredRollout], list[CandidateSet], ScoreReceipt]:
        """Scored rollouts for the learner, candidates for the probe workers."""
        start = time.perf_counter()
        scored = self._actor.score(rollouts)
        found = (
            [find_candidates(one, self._config.candidates) for one in scored]
            if self._config.probes
            else []
        )
        return (
            scored,
            found,
            ScoreReceipt(
                num_tokens=sum(len(one.token_loss_N) for one in scored),
                num_candidates=sum(len(one.positions_W) for one in found),
                loss_sum=float(sum(one.token_loss_N.sum(dtype=np.float64) for one in scored)),
                busy_s=time.perf_counter() - start,
            ),
        )


class ProbeWorker:
    """Holds a teacher engine of its own and solves transport on the CPU beside it."""

    def __init__(self, config: Config) -> None:
        folder = resolve_model(config.teacher.model)
        self._actor = ProbeActor(
            config.probe,
            folder,
            _opener(folder, config.probe.engine, config),
            run_seed=config.run.seed,
        )

    def ready(self) -> None:
        """Return once the engine is loaded."""

    def probe(self, candidates: Sequence[CandidateSet]) -> tuple[list[ProbeSet], ProbeReceipt]:
        """Probe every candidate of a chunk."""
        start = time.perf_counter()
        probes = self._actor.probe(candidates)
        return probes, ProbeReceipt(
            distances=tuple(float(d) for one in probes for d in one.d_ot_W),
            num_unconverged=sum(int((~one.converged_W).sum()) for one in probes),
            num_tokens=sum(int(one.num_teacher_W.sum()) for one in probes),
            busy_s=time.perf_counter() - start,
        )


class LearnerWorker:
    """Holds one learner rank."""

    def __init__(
        self, config: Config, *, rank: int, total_steps: int, windows_folder: Path | None
    ) -> None:
        self._config, self._rank, self._total_steps = config, rank, total_steps
        self._recorder = WindowRecorder(windows_folder) if windows_folder and rank == 0 else None
        self._learner: LearnerActor | None = None

    def rendezvous(self) -> tuple[str, int]:
        """Address and free port of this rank's node, where the process group meets."""
        import socket

        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), int(probe.getsockname()[1])

    def start(self, master_addr: str, master_port: int) -> None:
        """Join the process group and load the student; every rank must be called."""
        self._learner = LearnerActor(
            self._config.learner,
            student_folder=resolve_model(self._config.learner.model),
            teacher_head_VE=output_head(resolve_model(self._config.teacher.model)),
            rank=self._rank,
            master_addr=master_addr,
            master_port=master_port,
            total_steps=self._total_steps,
            seed=self._config.run.seed,
        )

    def accumulate(
        self, scored: Sequence[ScoredRollout], probes: Sequence[ProbeSet] | None, threshold: float
    ) -> LearnReceipt:
        """Pack the chunk, add this rank's share to the gradient; rank 0 records the windows."""
        start = time.perf_counter()
        batches = pack(
            scored,
            probes,
            threshold=threshold,
            token_budget=self._config.windows.token_budget,
            num_ranks=self._config.learner.num_ranks,
        )
        sums = LossSums()
        for batch in batches[self._rank]:
            sums = sums + self._rank_actor.accumulate(batch)
        if self._recorder:
            self._recorder.add(probes or (), threshold)
        return LearnReceipt(
            sums=sums,
            num_divergent=sum(int(divergent(one, threshold).sum()) for one in probes or ()),
            busy_s=time.perf_counter() - start,
        )

    def step(self) -> StepReport:
        """Update the weights with what was accumulated; every rank must be called."""
        report = self._rank_actor.step()
        if self._recorder:
            self._recorder.write(report.step)
        return report

    def publish(self) -> Iterator[WeightBucket]:
        """The weights in buckets (rank 0; the other ranks take part and yield nothing)."""
        buckets = self._rank_actor.publish(self._config.weights.bucket_mib * 2**20)
        if self._rank == 0:
            yield from buckets
        else:
            for _ in buckets:
                pass

    def save(self, folder: Path) -> None:
        """Write this rank's shard."""
        self._rank_actor.save(folder)

    def load(self, folder: Path) -> None:
        """Read this rank's shard."""
        self._rank_actor.load(folder)

    def export(self, folder: Path) -> None:
        """Write the student as a Hugging Face folder (rank 0; every rank must be called)."""
        self._rank_actor.export(folder)

    @property
    def _rank_actor(self) -> LearnerActor:
        assert self._learner is not None, "start() comes first"
        return self._learner


def _opener(folder: Path, engine: EngineConfig, config: Config) -> Callable[[], GenerationEngine]:
    return lambda: open_generation(
        folder, engine, max_model_len=config.context_tokens, seed=config.run.seed
    )
