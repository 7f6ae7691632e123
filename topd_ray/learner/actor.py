"""TrainBatch -> LossSums -> StepReport: one learner rank, from micro-batch to new
weights.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from topd_ray.config import LearnerConfig, ObjectiveConfig, TeacherConfig
from topd_ray.engines.tensors import to_torch
from topd_ray.errors import TopdError, UserError
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.model import DistillationModel, load_student, student_head
from topd_ray.learner.schedule import lr_factor
from topd_ray.messages import (
    HiddenSignal,
    Ints,
    LossSums,
    SampledSignal,
    StepReport,
    TopkSignal,
    TrainBatch,
)
from topd_ray.seeds import derive_seed
from topd_ray.weights.buckets import WeightBucket, in_buckets
from topd_ray.weights.export import export_folder

_STATE = "learner.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LearnerActor:
    """TrainBatch -> StepReport. Gradients add up between steps; the step divides them
    once.

    Both losses are divided by the step's count of response tokens, whatever they weigh,
    over all ranks and micro-batches. One count for both: the number of window positions
    is only known once the last probe of the step is judged, so with a normaliser of its
    own L_traj could not be weighed against L_OPD, and no gradient accumulated, while
    others still decode.

    `policy_version` counts the steps, skipped ones too: every step publishes, and a
    rollout is trained at most `max_staleness` steps after the weights that made it.
    Methods are collective: each rank must call them in turn.
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
        master_addr: str,
        master_port: int,
        total_steps: int,
        seed: int,
        max_staleness: int = 0,
    ) -> None:
        """`teacher_head_VE` comes where `teacher.signal` is hidden, and only there."""
        from topd_ray.engines.deepspeed import DeepSpeedTraining

        self._config, self._rank, self._seed = config, rank, seed
        self._lambda_traj, self._max_staleness = objective.lambda_traj, max_staleness
        self._student_folder = student_folder
        self._step, self._num_batches = 0, 0
        self._sums = LossSums()
        dtype = _DTYPES[config.dtype]
        self._model = DistillationModel(
            load_student(
                student_folder,
                dtype=dtype,
                gradient_checkpointing=config.gradient_checkpointing,
            ),
            signal=teacher.signal,
            teacher_head_VE=teacher_head_VE,
            parts=_parts(objective, teacher),
            lambda_traj=objective.lambda_traj,
        )
        self._engine = DeepSpeedTraining(
            self._model,
            trained=self._model.student,
            zero_stage=config.zero_stage,
            dtype=dtype,
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
            master_addr=master_addr,
            master_port=master_port,
        )

    @property
    def policy_version(self) -> int:
        """Version of the weights held; the student's folder is 0."""
        return self._step

    def accumulate(self, batch: TrainBatch) -> LossSums:
        """Add the gradient of a micro-batch; returns this rank's sums of it alone.

        Raises TopdError for a batch of a policy that is too old, or yet to come.
        """
        if not 0 <= self._step - batch.policy_version <= self._max_staleness:
            raise TopdError(
                f"micro-batch of rollouts {list(batch.rollout_ids)} is of"
                f" policy_version {batch.policy_version}, the learner holds"
                f" {self._step}; rollout.max_staleness={self._max_staleness} allows so"
                " many steps between them"
            )
        # any randomness of the student (dropout) is the micro-batch's, not the
        # process's
        torch.manual_seed(
            derive_seed(
                self._seed, self._step, self._num_batches, self._rank, "learner"
            )
        )
        _, opd, traj, rollout_kl = self._engine.accumulate(*self._inputs(batch))
        sums = LossSums(
            opd=opd,
            traj=traj,
            rollout_kl=rollout_kl,
            num_tokens=len(batch.response_ids_T),
            num_window_positions=len(batch.window_Q),
        )
        self._sums, self._num_batches = self._sums + sums, self._num_batches + 1
        return sums

    def step(self, *, skip: bool = False) -> StepReport:
        """Update the weights; the same report on every rank.

        With `skip`, and where the losses or the gradient are not finite, neither
        weights nor optimizer nor learning rate move, and the report says `skipped`.
        Raises TopdError where no rank trained a token.
        """
        opd, traj, rollout_kl, *counts = self._engine.all_sum(
            [
                self._sums.opd,
                self._sums.traj,
                self._sums.rollout_kl,
                self._sums.num_tokens,
                self._sums.num_window_positions,
            ]
        )
        num_tokens, num_window_positions = (int(count) for count in counts)
        if num_tokens == 0:
            raise TopdError(
                f"step {self._step + 1}: no response token on any rank; accumulate a"
                " batch first"
            )
        finite = math.isfinite(opd) and math.isfinite(traj)
        outcome = self._engine.step(normaliser=num_tokens, skip=skip or not finite)
        self._step, self._num_batches, self._sums = self._step + 1, 0, LossSums()
        return StepReport(
            step=self._step,
            policy_version=self._step,
            loss=(opd + self._lambda_traj * traj) / num_tokens,
            loss_opd=opd / num_tokens,
            loss_traj=traj / num_tokens,
            rollout_kl=rollout_kl / num_tokens,
            grad_norm=outcome.grad_norm,
            lr=outcome.lr,
            num_tokens=num_tokens,
            num_window_positions=num_window_positions,
            skipped=outcome.skipped,
        )

    def follow_teacher(self) -> None:
        """Self-distillation: the teacher's head is from here on what the student's is
        now.

        For when the teacher's engine has loaded the student's weights. Without a copy
        of the head (signals `topk` and `sampled`) there is nothing to replace.
        """
        if self._model.teacher_head_VE is not None:
            self._model.set_teacher_head(
                self._engine.whole(student_head(self._model.student))
            )

    def set_teacher_head(self, head_VE: Float[Tensor, "V E"]) -> None:
        """Take another output head of the teacher, read from a checkpoint."""
        self._model.set_teacher_head(head_VE)

    def abandon_step(self) -> None:
        """Drop the gradient accumulated since the last step; the run is about to end.

        The engine's gradient buffers keep it, so no further `accumulate` may follow.
        """
        self._num_batches = 0
        self._sums = LossSums()

    def publish(self, bucket_bytes: int) -> Iterator[WeightBucket]:
        """The weights under their Hugging Face names, whole, on rank 0; other ranks
        yield nothing.

        Each rank must exhaust it.
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

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and schedule; only between steps."""
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
        """Go on exactly where `save` was called; raises TopdError where nothing was
        saved.
        """
        self._engine.load(folder)
        self._step = json.loads((folder / _STATE).read_text(encoding="utf-8"))["step"]

    def export(self, target: Path) -> None:
        """Write the student as a Hugging Face folder, on rank 0; every rank must call
        it.
        """
        if self._rank == 0:
            export_folder(
                self._engine.weights(), source=self._student_folder, target=target
            )
        else:
            for _ in self._engine.weights():
                pass

    def close(self) -> None:
        """Leave the process group."""
        self._engine.close()

    def _inputs(self, batch: TrainBatch) -> tuple[Any, ...]:
        """The arguments of `DistillationModel.forward`."""
        return (
            _ids(batch.input_ids_L),
            _ids(batch.length_S),
            _ids(batch.trunk_S),
            _ids(batch.branch_S),
            _ids(batch.position_TU),
            _ids(batch.response_ids_T),
            to_torch(batch.logp_T),
            to_torch(batch.weight_T),
            _ids(batch.window_Q),
            _ids(batch.target_ids_QK),
            to_torch(batch.target_weights_QK),
            *self._signal(batch),
        )

    def _signal(self, batch: TrainBatch) -> tuple[Tensor, ...]:
        """Raises UserError for an id of the teacher that the student does not have."""
        match batch.signal:
            case HiddenSignal(hidden_ND=hidden_TE):
                return (to_torch(hidden_TE),)
            case TopkSignal(ids_NM=ids_TM, logq_NM=logq_TM):
                if (largest := int(ids_TM.max(initial=0))) >= self._model.num_ids:
                    raise UserError(
                        f"the teacher names id {largest}, the student's output head has"
                        f" {self._model.num_ids} rows; both need the same tokenizer"
                    )
                return _ids(ids_TM), to_torch(logq_TM)
            case SampledSignal(logq_N=logq_T):
                return (to_torch(logq_T),)


def _parts(objective: ObjectiveConfig, teacher: TeacherConfig) -> TokenLoss:
    return TokenLoss(
        divergence=objective.divergence,
        jsd_beta=objective.jsd_beta,
        token_clip=objective.token_clip,
        forward_above_entropy=objective.forward_above_entropy,
        kd_ratio=objective.kd_ratio,
        tail=teacher.tail,
    )


def _ids(array: Ints) -> Tensor:
    return to_torch(array).long()


__all__ = ["LearnerActor"]
