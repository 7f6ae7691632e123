"""TrainBatch -> LossSums -> StepReport: one learner rank."""

import json
import math
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._C._distributed_c10d import Store

from topd_ray.config import LearnerConfig, ObjectiveConfig, TeacherConfig, Transport
from topd_ray.engines.protocols import TransferGroup, TransferPiece, WeightSender
from topd_ray.engines.tensors import to_torch
from topd_ray.errors import TopdError
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.gaps import token_gap
from topd_ray.learner.inputs import empty_batch, forward_inputs, padded
from topd_ray.learner.lora import adapters_of, add_adapters
from topd_ray.learner.model import DistillationModel, load_student, student_head
from topd_ray.learner.schedule import lr_factor
from topd_ray.learner.sequence_parallel import open_sequence_group, own_part
from topd_ray.learner.teacher import likeliest_ids
from topd_ray.messages import (
    Floats,
    HiddenSignal,
    Ints,
    LossSums,
    StepReport,
    TeacherSignal,
    TopkSignal,
    TrainBatch,
)
from topd_ray.models.vocabulary import num_ids
from topd_ray.seeds import derive_seed
from topd_ray.weights.buckets import WeightBucket, in_buckets
from topd_ray.weights.export import export_folder
from topd_ray.weights.transport import open_sender

_STATE = "learner.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MIN_TOKENS_ON_GPU = 128
"""Flex attention has another kernel for fewer queries, which is made for decoding."""


class LearnerActor:
    """One learner rank: it adds up gradients between steps; the step divides them.

    Both losses are divided by the number of response tokens of the step, of any weight,
    over all ranks and micro-batches. L_traj has no normaliser for itself: the number of
    window positions is known only when the last probe of the step is judged, and until
    then no gradient could be accumulated while others still decode.

    `policy_version` counts the steps, skipped ones too: every step publishes, and a
    rollout is trained at most `max_staleness` steps after the weights that sampled it.
    Methods are collective: every rank must call them in the same order.
    """

    def __init__(
        self,
        config: LearnerConfig,
        *,
        objective: ObjectiveConfig,
        teacher: TeacherConfig,
        student_folder: Path,
        teacher_head_VE: Float[Tensor, "V E"] | None,
        rank: int,
        store: Store,
        total_steps: int,
        seed: int,
        max_staleness: int = 0,
    ) -> None:
        """Join the process group and load the student; waits for all ranks.

        Args:
            config: The learner's section.
            objective: The losses.
            teacher: The teacher's section; it says what signal comes.
            student_folder: Hugging Face folder of the student.
            teacher_head_VE: The teacher's output head, with the signal `hidden` alone.
            rank: Index of this rank.
            store: Where the ranks have met; see `engines.rendezvous`.
            total_steps: Steps of the whole run, for the learning rate.
            seed: Seed of the run.
            max_staleness: Most steps between the weights that sampled a rollout and
                those that are trained on it.
        """
        from topd_ray.engines.deepspeed import DeepSpeedTraining
        from topd_ray.engines.deepspeed_ranks import join_ranks

        self._config = config
        self._rank = rank
        self._seed = seed
        self._lambda_traj = objective.lambda_traj
        self._max_staleness = max_staleness
        self._student_folder = student_folder
        self._signal = teacher.signal
        self._signal_width = (
            teacher.top_k if teacher_head_VE is None else teacher_head_VE.shape[1]
        )
        self._step = 0
        self._num_batches = 0
        self._sums = LossSums()
        self._sender: WeightSender | None = None
        self._pieces: Iterator[TransferPiece | None] | None = None
        join_ranks(store, rank=rank, world_size=config.num_ranks)
        student = _open_student(config, student_folder, seed, rank)
        self._model = DistillationModel(
            student,
            num_ids=num_ids(student_folder),
            signal=teacher.signal,
            teacher_head_VE=teacher_head_VE,
            token_loss=_token_loss(objective, teacher),
            lambda_traj=objective.lambda_traj,
        )
        self._engine = DeepSpeedTraining(
            self._model,
            trained=student,
            adapters=adapters_of(student),
            zero_stage=config.running_zero_stage,
            dtype=_DTYPES[config.dtype],
            lr=config.lr,
            lr_factor=lambda updates: lr_factor(
                updates,
                total_steps=total_steps,
                warmup_fraction=config.warmup_fraction,
                floor_fraction=config.lr_floor_fraction,
            ),
            betas=config.betas,
            weight_decay=config.weight_decay,
            clip=config.clip,
            rank=rank,
            world_size=config.num_ranks,
        )
        if config.sequence_parallel > 1:
            self._model.sequence_group = open_sequence_group(
                rank, num_ranks=config.num_ranks, size=config.sequence_parallel
            )

    @property
    def policy_version(self) -> int:
        """Version of the weights held; those of the student's folder are 0."""
        return self._step

    def accumulate(self, batches: Sequence[TrainBatch]) -> LossSums:
        """Add the gradient of this rank's micro-batches.

        Every rank must call it, with any number of micro-batches: ranks with fewer run
        empty ones, since the collectives of sharded weights must meet.

        Args:
            batches: This rank's micro-batches; may be empty. Ranks that share sequences
                are given the same.

        Returns:
            The sums of these micro-batches alone; of shared ones, of the positions of
            this rank's tokens.

        Raises:
            TopdError: A batch's policy is too old, or newer than the learner's.
        """
        for batch in batches:
            self._refuse_if_stale(batch)
        sums = LossSums()
        for batch in [*batches, *self._padding(len(batches))]:
            batch_sums = self._add_gradient(padded(batch, _min_tokens()))
            sums = sums + batch_sums
            self._sums = self._sums + batch_sums
        return sums

    def fullest(self, num_batches: int) -> int:
        """Return the number of micro-batches of the rank that has most of them.

        Every rank must call it.
        """
        if self._config.num_ranks == 1:
            return num_batches
        return self._engine.all_max(num_batches)

    def _refuse_if_stale(self, batch: TrainBatch) -> None:
        if not 0 <= self._step - batch.policy_version <= self._max_staleness:
            raise TopdError(
                f"micro-batch of rollouts {list(batch.rollout_ids)} is of"
                f" policy_version {batch.policy_version}, the learner holds"
                f" {self._step}; rollout.max_staleness={self._max_staleness} allows so"
                " many steps between them"
            )

    def _padding(self, num_batches: int) -> list[TrainBatch]:
        """Return the empty micro-batches that this rank lacks to the fullest rank."""
        padding = empty_batch(
            self._signal, width=self._signal_width, policy_version=self._step
        )
        return [padding] * (self.fullest(num_batches) - num_batches)

    def _add_gradient(self, batch: TrainBatch) -> LossSums:
        group = self._model.sequence_group
        if group is not None:
            batch = own_part(batch, index=group.index, size=group.size)
        # A seed for each micro-batch: the student's randomness (dropout) must not
        # depend on what the process drew before, or a resumed run would differ.
        torch.manual_seed(
            derive_seed(
                self._seed, self._step, self._num_batches, self._rank, "learner"
            )
        )
        inputs = forward_inputs(batch, num_ids=self._model.num_ids)
        _, opd, traj, rollout_kl, reverse_kl, forward_kl, gap_at, gap_logp = (
            self._engine.accumulate(*inputs)
        )
        self._num_batches += 1
        return LossSums(
            opd=opd,
            traj=traj,
            rollout_kl=rollout_kl,
            reverse_kl=reverse_kl,
            forward_kl=forward_kl,
            num_reverse=int(batch.reverse_T.sum()),
            num_forward=int(batch.forward_T.sum()),
            num_tokens=len(batch.response_ids_T),
            num_sampled=int((~np.isposinf(batch.logp_T)).sum()),
            num_window_positions=len(batch.window_Q),
            worst_gap=token_gap(batch, int(gap_at), gap_logp),
        )

    def step(self, *, skip: bool = False) -> StepReport:
        """Update the weights and return the step's report, the same on every rank.

        With `skip`, and where the losses or the gradient are not finite, neither
        weights nor optimizer nor learning rate move, and the report says `skipped`.

        Raises:
            TopdError: No rank trained a token.
        """
        opd, traj, rollout_kl, *counts = self._engine.all_sum(
            [
                self._sums.opd,
                self._sums.traj,
                self._sums.rollout_kl,
                self._sums.num_tokens,
                self._sums.num_sampled,
                self._sums.num_window_positions,
            ]
        )
        num_tokens, num_sampled, num_window_positions = map(int, counts)
        if num_tokens == 0:
            raise TopdError(
                f"step {self._step + 1}: no response token on any rank; accumulate a"
                " batch first"
            )
        finite = math.isfinite(opd) and math.isfinite(traj)
        outcome = self._engine.step(normaliser=num_tokens, skip=skip or not finite)
        self._step += 1
        self._num_batches = 0
        self._sums = LossSums()
        return StepReport(
            step=self._step,
            policy_version=self._step,
            loss=(opd + self._lambda_traj * traj) / num_tokens,
            loss_opd=opd / num_tokens,
            loss_traj=traj / num_tokens,
            rollout_kl=rollout_kl / max(1, num_sampled),
            grad_norm=outcome.grad_norm,
            lr=outcome.lr,
            num_tokens=num_tokens,
            num_window_positions=num_window_positions,
            skipped=outcome.skipped,
        )

    def follow_teacher(self) -> None:
        """Replace the teacher's head by the student's present one (self-distillation).

        To be called when the teacher's engine has loaded the student's weights. With
        the signals `topk` and `sampled` there is no head to replace.
        """
        if self._model.teacher_head_VE is not None:
            self._model.set_teacher_head(
                self._engine.whole(student_head(self._model.student))
            )

    def set_teacher_head(self, head_VE: Float[Tensor, "V E"]) -> None:
        """Replace the teacher's head by one that was read from a checkpoint."""
        self._model.set_teacher_head(head_VE)

    def likeliest_of_teacher(
        self, signal: TeacherSignal, count: int
    ) -> tuple[Ints, Floats] | None:
        """Return the teacher's likeliest ids where it left a signal; for the records.

        Args:
            signal: The teacher's signal at n positions, by the head that is held.
            count: m, most ids a position.

        Returns:
            Ids and log-probabilities, each (n, m), best first; None with `sampled`.
        """
        if isinstance(signal, TopkSignal):
            return signal.ids_NM[:, :count], signal.logq_NM[:, :count]
        if not isinstance(signal, HiddenSignal):
            return None
        head_VE = self._model.teacher_head_VE
        assert head_VE is not None, "the signal `hidden` comes with a head"
        ids_NM, logq_NM = likeliest_ids(
            to_torch(signal.hidden_ND), head_VE[: self._model.num_ids], count
        )
        return ids_NM.int().cpu().numpy(), logq_NM.cpu().numpy()

    def abandon_step(self) -> None:
        """Drop the gradient and the sums accumulated since the last step."""
        if self._num_batches:
            self._engine.drop_gradient()
        self._num_batches = 0
        self._sums = LossSums()

    def publish(self, bucket_bytes: int) -> Iterator[WeightBucket]:
        """Yield the whole weights under their Hugging Face names, on rank 0 alone.

        Every rank must exhaust the iterator.
        """
        if self._rank == 0:
            yield from in_buckets(
                self._engine.weights(),
                policy_version=self._step,
                max_bytes=bucket_bytes,
            )
        else:
            for _ in self._engine.weights():
                pass

    def open_sender(
        self,
        transport: Transport,
        group: TransferGroup,
        *,
        listener: socket.socket | None,
        timeout_s: float,
    ) -> None:
        """Join the rollout engines in a group; on rank 0 waits until all have joined.

        `listener`: the socket of the group's port, on rank 0 alone.
        """
        self.close_sender()
        self._sender = open_sender(
            transport, group, rank=self._rank, listener=listener, timeout_s=timeout_s
        )

    def next_piece(self, *, is_first: bool) -> TransferPiece | None:
        """Return the next piece of the weights that every engine must take.

        A broadcast is made by the call that returns None, the end, while the engines
        take the piece before it. Only rank 0's pieces count, and every rank must be
        called.

        Args:
            is_first: Whether to begin with the weights anew.

        Raises:
            TopdError: The group is closed.
        """
        if self._sender is None:
            raise TopdError("the group for weights is closed; open another one")
        if is_first or self._pieces is None:
            self._pieces = self._sender.pieces(self._engine)
        return next(self._pieces, None)

    def close_sender(self) -> None:
        """Leave the group, also while another thread waits in `next_piece`."""
        sender = self._sender
        self._sender = None
        self._pieces = None
        if sender is not None:
            sender.close()

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and schedule.

        Raises:
            TopdError: A gradient is accumulated; save between steps.
        """
        if self._num_batches:
            raise TopdError(
                f"step {self._step + 1} has accumulated {self._num_batches}"
                " micro-batches; a checkpoint holds no gradient, save after the step"
            )
        self._engine.save(folder)
        if self._rank == 0:
            (folder / _STATE).write_text(
                json.dumps({"step": self._step}), encoding="utf-8"
            )

    def load(self, folder: Path) -> None:
        """Restore the state that `save` wrote.

        Raises:
            TopdError: Nothing was saved in the folder.
        """
        self._engine.load(folder)
        self._step = json.loads((folder / _STATE).read_text(encoding="utf-8"))["step"]

    def export(self, target: Path) -> None:
        """Write the student as a Hugging Face folder, on rank 0 alone."""
        if self._rank == 0:
            export_folder(
                self._engine.weights(), source=self._student_folder, target=target
            )
        else:
            for _ in self._engine.weights():
                pass

    def sleep(self) -> None:
        """Move what this rank holds to the host.

        Raises:
            TopdError: A gradient is accumulated; sleep between steps.
        """
        if self._num_batches:
            raise TopdError(
                f"step {self._step + 1} has accumulated {self._num_batches}"
                " micro-batches; a learner sleeps between steps"
            )
        self._engine.sleep()

    def wake(self) -> None:
        """Take it back to the device."""
        self._engine.wake()

    def close(self) -> None:
        """Leave the process group."""
        self.close_sender()
        self._engine.close()


def _open_student(
    config: LearnerConfig, folder: Path, seed: int, rank: int
) -> nn.Module:
    """Load the student, with adapters where the config has any.

    With ZeRO 3 a rank holds its share of the weights alone, from the start on.
    """
    from topd_ray.engines.deepspeed_ranks import shard_weights

    dtype = _DTYPES[config.dtype]
    is_sharded = config.running_zero_stage == 3
    student = load_student(
        folder,
        dtype=dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        splits_sequences=config.sequence_parallel > 1,
        shard=partial(shard_weights, dtype=dtype, rank=rank) if is_sharded else None,
    )
    if config.lora is not None:
        add_adapters(student, config.lora, seed=derive_seed(seed, "lora"))
    return student


def _min_tokens() -> int:
    """Return the length to which a shorter micro-batch is padded."""
    return _MIN_TOKENS_ON_GPU if torch.cuda.is_available() else 1


def _token_loss(objective: ObjectiveConfig, teacher: TeacherConfig) -> TokenLoss:
    return TokenLoss(
        divergence=objective.divergence,
        jsd_beta=objective.jsd_beta,
        token_clip=objective.token_clip,
        forward_above_entropy=objective.forward_above_entropy,
        kd_ratio=objective.kd_ratio,
        tail=teacher.tail,
    )


__all__ = ["LearnerActor"]
