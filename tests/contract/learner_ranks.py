"""What the learner's contract is tested with: micro-batches, a plain torch oracle, real
ranks.
"""

import multiprocessing
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._C._distributed_c10d import Store

from tests.contract.receiving import sent_by_gloo
from tests.tiny import VOCAB
from topd_ray.config import LearnerConfig, ObjectiveConfig, TeacherConfig
from topd_ray.engines.adapters import outgoing_weights
from topd_ray.engines.rendezvous import meet, open_listener
from topd_ray.learner import LearnerActor
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.inputs import Signal
from topd_ray.learner.layout import Layout
from topd_ray.learner.lora import adapters_of, add_adapters
from topd_ray.learner.model import DistillationModel, load_student
from topd_ray.learner.schedule import lr_factor
from topd_ray.messages import (
    HiddenSignal,
    HiddenStates,
    Ints,
    SampledSignal,
    StepReport,
    TeacherSignal,
    TopkSignal,
    TrainBatch,
)
from topd_ray.seeds import derive_seed

TEACHER_WIDTH = 64
TOP_K = 4
OBJECTIVE = ObjectiveConfig(lambda_traj=0.3)
TOTAL_STEPS = 8
RANK_DEADLINE_S = 300
Weights = dict[str, NDArray[Any]]


def make_batch(
    lengths: Sequence[int],
    *,
    seed: int,
    version: int = 0,
    prompt: int = 2,
    signal: Signal = "hidden",
    resampled: int = 0,
) -> TrainBatch:
    """Rollouts of random tokens, trained from the `prompt`-th on; two overlapping
    windows each.

    A window of `resampled` more tokens hangs off the middle of each, where that is not
    0.
    """
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, len(VOCAB), length + resampled) for length in lengths]
    trained, behind, windows, start = list[int](), list[int](), list[int](), 0
    for length in lengths:
        first, count = len(trained), length - prompt
        trained += range(start + prompt, start + length)
        behind += range(start + length, start + length + resampled)
        windows += [
            first + place for place in (*range(count), *range(count // 2, count))
        ]
        start += length + resampled
    windows += [len(trained) + place for place in range(len(behind))]
    target_ids_QK = rng.integers(0, len(VOCAB), (len(windows), 5)).astype(np.int32)
    return TrainBatch(
        rollout_ids=tuple(f"r{seed}.{row}" for row in range(len(lengths))),
        policy_version=version,
        input_ids_L=np.concatenate(ids).astype(np.int32),
        **_segments(lengths, resampled),
        position_TU=np.array(trained + behind, np.int32),
        response_ids_T=rng.integers(0, len(VOCAB), len(trained)).astype(np.int32),
        weight_T=rng.choice([0.0, 0.5, 1.0], len(trained), p=[0.1, 0.2, 0.7]).astype(
            np.float32
        ),
        reverse_T=np.zeros(0, np.bool_),
        forward_T=np.zeros(0, np.bool_),
        signal=_signal(signal, len(trained), rng),
        window_Q=np.array(windows, np.int32),
        target_ids_QK=target_ids_QK,
        target_weights_QK=rng.dirichlet(np.ones(5), len(windows)).astype(np.float32),
        logp_T=-4.0 - rng.random(len(trained), dtype=np.float32),
    )


def _segments(lengths: Sequence[int], resampled: int) -> dict[str, Ints]:
    """A rollout, and where `resampled` is not 0 one window behind it; again and
    again.
    """
    each = 2 if resampled else 1
    rows = [(length, each * r, 0) for r, length in enumerate(lengths)]
    hanging = [(resampled, each * r, length // 2) for r, length in enumerate(lengths)]
    parts = [part for pair in zip(rows, hanging, strict=True) for part in pair[:each]]
    length_S, trunk_S, branch_S = np.array(parts, np.int32).T
    return {"length_S": length_S, "trunk_S": trunk_S, "branch_S": branch_S}


def _signal(signal: Signal, tokens: int, rng: np.random.Generator) -> TeacherSignal:
    if signal == "hidden":
        return HiddenSignal(
            hidden_ND=rng.standard_normal((tokens, TEACHER_WIDTH), np.float32)
        )
    if signal == "sampled":
        return SampledSignal(logq_N=-4.0 - rng.random(tokens, dtype=np.float32))
    logits_NV = torch.from_numpy(rng.standard_normal((tokens, len(VOCAB)), np.float32))
    logq_NM, ids_NM = (x.numpy() for x in logits_NV.log_softmax(1).topk(TOP_K, 1))
    return TopkSignal(ids_NM=ids_NM.astype(np.int32), logq_NM=logq_NM)


def poisoned(batch: TrainBatch) -> TrainBatch:
    """The same with a teacher that has lost its mind at one position."""
    match batch.signal:
        case HiddenSignal(hidden_ND=hidden_TD):
            return replace(batch, signal=HiddenSignal(hidden_ND=_with_nan(hidden_TD)))
        case TopkSignal(ids_NM=ids_TM, logq_NM=logq_TM):
            return replace(
                batch, signal=TopkSignal(ids_NM=ids_TM, logq_NM=_with_nan(logq_TM))
            )
        case SampledSignal(logq_N=logq_T):
            return replace(batch, signal=SampledSignal(logq_N=_with_nan(logq_T)))


def _with_nan(array: NDArray[Any]) -> NDArray[Any]:
    array = array.copy()
    array[[0, -1]] = np.nan  # ranks that share a sequence have one of them each
    return array


def step_batches(version: int, signal: Signal = "hidden") -> list[list[TrainBatch]]:
    """Return the shares of two ranks: uneven in tokens, rows and micro-batches.

    At version 2, rank 1 has no micro-batch at all.
    """
    fields: dict[str, Any] = {"version": version, "signal": signal}
    first = [
        make_batch([9, 14, 5], seed=10 * version + 1, **fields),
        make_batch([30], seed=10 * version + 2, resampled=3, **fields),
    ]
    second = [make_batch([7, 4], seed=10 * version + 3, resampled=2, **fields)]
    return [first + second, []] if version == 2 else [first, second]


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
    }
    return LearnerConfig(**values | fields)


def open_learner(
    config: LearnerConfig,
    student: Path,
    *,
    listener: socket.socket | None = None,
    rank: int = 0,
    signal: Signal = "hidden",
) -> LearnerActor:
    return LearnerActor(
        config,
        objective=OBJECTIVE,
        teacher=TeacherConfig(model="unused", signal=signal, top_k=TOP_K),
        student_folder=student,
        teacher_head_VE=teacher_head() if signal == "hidden" else None,
        rank=rank,
        store=meeting(rank, listener, world_size=config.num_ranks),
        total_steps=TOTAL_STEPS,
        seed=0,
    )


def held_weights(learner: LearnerActor) -> Weights:
    """The weights as published; empty on every rank but 0."""
    return {name: w for bucket in learner.publish(10_000) for name, w in bucket.arrays}


def meeting(
    rank: int = 0, listener: socket.socket | None = None, *, world_size: int = 1
) -> Store:
    """Where the ranks of one machine meet; one rank alone needs no listener."""
    listener = listener or open_listener("127.0.0.1")
    port = listener.getsockname()[1]
    return meet(
        "127.0.0.1",
        port,
        world_size=world_size,
        listener=None if rank else listener,
    )


@dataclass
class Oracle:
    """The same step without DeepSpeed: one model, one rank, torch.optim.AdamW."""

    config: LearnerConfig
    student: Path
    signal: Signal = "hidden"

    def __post_init__(self) -> None:
        student = load_student(
            self.student, dtype=torch.float32, gradient_checkpointing=False
        )
        if self.config.lora is not None:
            add_adapters(student, self.config.lora, seed=derive_seed(0, "lora"))
        self._model = DistillationModel(
            student,
            num_ids=len(VOCAB),
            signal=self.signal,
            teacher_head_VE=teacher_head() if self.signal == "hidden" else None,
            token_loss=TokenLoss(),
            lambda_traj=OBJECTIVE.lambda_traj,
        )
        self._optimizer = torch.optim.AdamW(
            [p for p in student.parameters() if p.requires_grad],
            betas=self.config.betas,
            weight_decay=self.config.weight_decay,
        )
        self._num_steps = 0

    def step(self, batches: Sequence[TrainBatch]) -> tuple[float, float]:
        """Loss and gradient norm of one step over all batches of all ranks."""
        num_tokens = sum(len(batch.response_ids_T) for batch in batches)
        loss = torch.stack([self._loss(batch) for batch in batches]).sum() / num_tokens
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            self._model.parameters(), self.config.clip
        )
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
        student = self._model.student
        outgoing = outgoing_weights(student, adapters_of(student))
        return {weight.name: weight.value().numpy().copy() for weight in outgoing}

    def _loss(self, batch: TrainBatch) -> torch.Tensor:
        loss, *_ = self._model(
            _ids(batch.input_ids_L),
            _ids(batch.length_S),
            _ids(batch.trunk_S),
            _ids(batch.branch_S),
            _ids(batch.position_TU),
            _ids(batch.response_ids_T),
            torch.from_numpy(batch.logp_T),
            torch.from_numpy(batch.weight_T),
            torch.from_numpy(batch.reverse_T),
            torch.from_numpy(batch.forward_T),
            _ids(batch.window_Q),
            _ids(batch.target_ids_QK),
            torch.from_numpy(batch.target_weights_QK),
            *_tensors(batch),
        )
        return loss


def _ids(array: Ints) -> torch.Tensor:
    return torch.from_numpy(array).long()


def _tensors(batch: TrainBatch) -> tuple[torch.Tensor, ...]:
    match batch.signal:
        case HiddenSignal(hidden_ND=hidden_TD):
            return (torch.from_numpy(hidden_TD),)
        case TopkSignal(ids_NM=ids_TM, logq_NM=logq_TM):
            return _ids(ids_TM), torch.from_numpy(logq_TM)
        case SampledSignal(logq_N=logq_T):
            return (torch.from_numpy(logq_T),)


def scored_by(student: Path, batch: TrainBatch, dtype: torch.dtype) -> TrainBatch:
    """The same with the hidden states of an exported student for the teacher's."""
    model: Any = load_student(student, dtype=dtype, gradient_checkpointing=False)
    layout = Layout(*map(_ids, (batch.length_S, batch.trunk_S, batch.branch_S)))
    with torch.no_grad():
        hidden_1LD = model.base_model(
            _ids(batch.input_ids_L)[None],
            position_ids=layout.place_L[None],
            layout=layout,
        ).last_hidden_state
    hidden_TD = hidden_1LD[0, _ids(batch.position_TU)]
    bits: HiddenStates = (
        hidden_TD.numpy()
        if dtype == torch.float32
        else hidden_TD.view(torch.int16).numpy().view(np.uint16)
    )
    return replace(batch, signal=HiddenSignal(hidden_ND=bits))


@dataclass
class Outcome:
    """What one rank saw: a step, a step that is not finite, a checkpoint, a third step,
    twice.

    With ZeRO 1 to 3 the ranks sleep after the first step.
    """

    reports: list[StepReport]
    after_first: Weights
    sent: list[Weights]
    """The weights after the first step, as each of three receivers had them by gloo."""
    after_skip: Weights
    after_third: Weights
    after_third_again: Weights
    """By a fresh learner, from the checkpoint before the third step.

    It had accumulated the other rank's share first and abandoned that step.
    """
    self_loss: float | None
    """Token loss, once the learner follows, against hidden states of the student
    itself.
    """


TwoRanks = dict[str, list[Outcome]]
"""Rank 0's first."""


Story = tuple[LearnerConfig, Path, Signal]


def run_two_ranks(cases: dict[str, Story], folder: Path) -> TwoRanks:
    """The story of `Outcome` on two real processes, for each config, student and
    signal.
    """
    context = multiprocessing.get_context("spawn")
    listeners = [open_listener("127.0.0.1") for _ in range(2 * len(cases))]
    ranks = [
        context.Process(target=_rank_main, args=(rank, cases, folder, listeners))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for listener in listeners:
        listener.close()  # the ranks have copies
    for rank in ranks:
        rank.join(RANK_DEADLINE_S)
        if rank.is_alive():
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return {
        case: [
            torch.load(folder / f"{case}-{r}.pt", weights_only=False) for r in range(2)
        ]
        for case in cases
    }


def _rank_main(
    rank: int, cases: dict[str, Story], folder: Path, listeners: list[socket.socket]
) -> None:
    torch.set_num_threads(1)
    for case, story in cases.items():
        outcome = _play(rank, story, folder / f"checkpoint-{case}", listeners)
        torch.save(outcome, folder / f"{case}-{rank}.pt")


def _play(
    rank: int, story: Story, checkpoint: Path, listeners: list[socket.socket]
) -> Outcome:
    config, student, signal = story
    # ranks that share sequences have the same share
    share = rank // config.sequence_parallel
    learner = open_learner(
        config, student, listener=listeners.pop(), rank=rank, signal=signal
    )
    reports = [take_step(learner, step_batches(0, signal)[share])]
    after_first = held_weights(learner)
    sent = sent_by_gloo(learner, rank, num_receivers=3)
    if config.running_zero_stage:
        learner.sleep()
        learner.wake()
    first, *others = step_batches(1, signal)[share]
    reports.append(take_step(learner, [poisoned(first) if rank else first, *others]))
    after_skip = held_weights(learner)
    learner.save(checkpoint)
    reports.append(take_step(learner, step_batches(2, signal)[share]))
    after_third = held_weights(learner)
    learner.close()
    again = open_learner(
        config, student, listener=listeners.pop(), rank=rank, signal=signal
    )
    again.load(checkpoint)
    again.accumulate(step_batches(2, signal)[1 - share])
    again.abandon_step()
    reports.append(take_step(again, step_batches(2, signal)[share]))
    after_third_again = held_weights(again)
    self_loss = (
        _follow(again, share, checkpoint / "export") if signal == "hidden" else None
    )
    again.close()
    return Outcome(
        reports,
        after_first,
        sent,
        after_skip,
        after_third,
        after_third_again,
        self_loss,
    )


def _follow(learner: LearnerActor, share: int, folder: Path) -> float:
    learner.export(folder)
    learner.follow_teacher()
    torch.distributed.barrier()  # rank 0 writes the export
    batch = make_batch([9 + share], seed=share, version=learner.policy_version)
    return learner.accumulate([scored_by(folder, batch, torch.float32)]).opd


def take_step(learner: LearnerActor, batches: Sequence[TrainBatch]) -> StepReport:
    learner.accumulate(batches)
    return learner.step()
