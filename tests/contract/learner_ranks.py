"""What the learner's contract is tested with: micro-batches, a plain torch oracle, real ranks."""

import multiprocessing
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.tiny import VOCAB
from topd_ray.config import LearnerConfig
from topd_ray.learner import LearnerActor
from topd_ray.learner.model import DistillationModel, load_student
from topd_ray.learner.schedule import lr_factor
from topd_ray.messages import StepReport, TrainBatch

TEACHER_WIDTH = 64
TOTAL_STEPS = 8
RANK_DEADLINE_S = 120
Weights = dict[str, NDArray[Any]]


def make_batch(
    lengths: Sequence[int], *, seed: int, version: int = 0, prompt: int = 2
) -> TrainBatch:
    """Rows of random tokens, trained from the `prompt`-th on, with two overlapping windows each."""
    rng = np.random.default_rng(seed)
    width = max(lengths)
    ids_RL = np.zeros((len(lengths), width), np.int32)
    positions, windows, first = list[int](), list[int](), 0
    for row, length in enumerate(lengths):
        ids_RL[row, :length] = rng.integers(0, len(VOCAB), length)
        positions += [row * width + place for place in range(prompt, length)]
        trained = length - prompt
        windows += [first + place for place in (*range(trained), *range(trained // 2, trained))]
        first += trained
    target_ids_QK = rng.integers(0, len(VOCAB), (len(windows), 5)).astype(np.int32)
    return TrainBatch(
        rollout_ids=tuple(f"r{seed}.{row}" for row in range(len(lengths))),
        policy_version=version,
        input_ids_RL=ids_RL,
        lengths_R=np.array(lengths, np.int32),
        position_T=np.array(positions, np.int32),
        teacher_hidden_TD=rng.standard_normal((len(positions), TEACHER_WIDTH), dtype=np.float32),
        window_Q=np.array(windows, np.int32),
        target_ids_QK=target_ids_QK,
        target_weights_QK=rng.dirichlet(np.ones(5), len(windows)).astype(np.float32),
    )


def empty_batch(version: int = 0) -> TrainBatch:
    """What a rank gets that is short of work."""
    return make_batch([2], seed=0, version=version)


def poisoned(batch: TrainBatch) -> TrainBatch:
    """The same with a teacher that has lost its mind at one position."""
    hidden_TD = batch.teacher_hidden_TD.copy()
    hidden_TD[0] = np.nan
    return replace(batch, teacher_hidden_TD=hidden_TD)


def step_batches(version: int) -> list[list[TrainBatch]]:
    """Two micro-batches for each of two ranks: uneven in tokens, rows and chunks, one empty."""
    return [
        [
            make_batch([9, 14, 5], seed=10 * version + 1, version=version),
            make_batch([30], seed=10 * version + 2, version=version),
        ],
        [make_batch([7, 4], seed=10 * version + 3, version=version), empty_batch(version)],
    ]


def teacher_head() -> torch.Tensor:
    rng = torch.Generator().manual_seed(11)
    return torch.randn(len(VOCAB), TEACHER_WIDTH, generator=rng)


def learner_config(**fields: Any) -> LearnerConfig:
    values: dict[str, Any] = {
        "model": "unused",
        "dtype": "float32",
        "lr": 2e-5,
        "weight_decay": 0.01,
        "clip": 1.0,
        "head_chunk": 4,
    }
    return LearnerConfig(**values | fields)


def open_learner(config: LearnerConfig, student: Path, *, port: int, rank: int = 0) -> LearnerActor:
    return LearnerActor(
        config,
        student_folder=student,
        teacher_head_VE=teacher_head(),
        rank=rank,
        master_addr="127.0.0.1",
        master_port=port,
        total_steps=TOTAL_STEPS,
        seed=0,
    )


def held_weights(learner: LearnerActor) -> Weights:
    """The weights as published; empty on every rank but 0."""
    return {name: w for bucket in learner.publish(10_000) for name, w in bucket.arrays}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Oracle:
    """The same step without DeepSpeed: one model, one rank, torch.optim.AdamW."""

    config: LearnerConfig
    student: Path

    def __post_init__(self) -> None:
        student = load_student(self.student, dtype=torch.float32, gradient_checkpointing=False)
        self._model = DistillationModel(
            student, teacher_head(), lambda_traj=self.config.lambda_traj
        )
        self._optimizer = torch.optim.AdamW(
            student.parameters(), betas=self.config.betas, weight_decay=self.config.weight_decay
        )
        self._num_steps = 0

    def step(self, batches: Sequence[TrainBatch]) -> tuple[float, float]:
        """Loss and gradient norm of one step over all batches of all ranks."""
        num_tokens = sum(len(batch.position_T) for batch in batches)
        loss = torch.stack([self._loss(batch) for batch in batches]).sum() / num_tokens
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self.config.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.lr * lr_factor(
                self._num_steps,
                total_steps=TOTAL_STEPS,
                warmup_fraction=self.config.warmup_fraction,
                floor_fraction=self.config.lr_floor_fraction,
            )
        self._optimizer.step()
        self._num_steps += 1
        return loss.item(), float(norm)

    def weights(self) -> Weights:
        named = self._model.student.named_parameters()
        return {name: p.detach().numpy().copy() for name, p in named}

    def _loss(self, batch: TrainBatch) -> torch.Tensor:
        loss, _, _ = self._model(
            torch.from_numpy(batch.input_ids_RL).long(),
            torch.from_numpy(batch.lengths_R).long(),
            torch.from_numpy(batch.position_T).long(),
            torch.from_numpy(batch.teacher_hidden_TD),
            torch.from_numpy(batch.window_Q).long(),
            torch.from_numpy(batch.target_ids_QK).long(),
            torch.from_numpy(batch.target_weights_QK),
            1,
        )
        return loss


@dataclass
class Outcome:
    """What one rank saw: a step, a step that is not finite, a checkpoint, a third step, twice."""

    reports: list[StepReport]
    after_first: Weights
    after_skip: Weights
    after_third: Weights
    after_third_again: Weights
    """By a fresh learner, from the checkpoint before the third step."""


TwoRanks = dict[str, list[Outcome]]
"""Rank 0's first."""


def run_two_ranks(cases: dict[str, tuple[LearnerConfig, Path]], folder: Path) -> TwoRanks:
    """The story of `Outcome` on two real processes, for each config and student folder."""
    context = multiprocessing.get_context("spawn")
    ports = free_ports(2 * len(cases))
    ranks = [
        context.Process(target=_rank_main, args=(rank, cases, folder, ports)) for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(RANK_DEADLINE_S)
        if rank.is_alive():
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return {
        case: [torch.load(folder / f"{case}-{r}.pt", weights_only=False) for r in range(2)]
        for case in cases
    }


def _rank_main(
    rank: int, cases: dict[str, tuple[LearnerConfig, Path]], folder: Path, ports: list[int]
) -> None:
    torch.set_num_threads(1)
    for case, (config, student) in cases.items():
        outcome = _story(rank, config, student, folder / f"checkpoint-{case}", ports)
        torch.save(outcome, folder / f"{case}-{rank}.pt")


def _story(
    rank: int, config: LearnerConfig, student: Path, checkpoint: Path, ports: list[int]
) -> Outcome:
    learner = open_learner(config, student, port=ports.pop(), rank=rank)
    reports = [take_step(learner, step_batches(0)[rank])]
    after_first = held_weights(learner)
    batches = step_batches(1)[rank]
    reports.append(take_step(learner, [poisoned(batches[0]) if rank else batches[0], batches[1]]))
    after_skip = held_weights(learner)
    learner.save(checkpoint)
    reports.append(take_step(learner, step_batches(2)[rank]))
    after_third = held_weights(learner)
    learner.close()
    again = open_learner(config, student, port=ports.pop(), rank=rank)
    again.load(checkpoint)
    reports.append(take_step(again, step_batches(2)[rank]))
    after_third_again = held_weights(again)
    again.close()
    return Outcome(reports, after_first, after_skip, after_third, after_third_again)


def take_step(learner: LearnerActor, batches: Sequence[TrainBatch]) -> StepReport:
    for batch in batches:
        learner.accumulate(batch)
    return learner.step()
