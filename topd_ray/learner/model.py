"""Micro-batch -> losses: the student, what is known of the teacher, and nothing between
them.

Axes: L tokens of the sequence, S its segments, T trained positions, TU those and
positions of resampled windows, D width of the student, E width of the teacher, V
vocabulary, M ids the teacher kept, Q window positions, K ids of a soft target.
"""

from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from topd_ray.errors import UserError
from topd_ray.learner.attention import PACKED, check_isolation
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.fused import distillation_losses, tiles
from topd_ray.learner.inputs import Signal
from topd_ray.learner.layout import Layout
from topd_ray.learner.loss import Positions, Recipe
from topd_ray.learner.teacher import SampledTeacher, Teacher, TopkTeacher, WholeTeacher
from topd_ray.models.refusals import check_experts, refuse_logit_transforms


class DistillationModel(nn.Module):
    """Both losses of a micro-batch in one forward pass, so that a sharding engine sees
    all of it.

    The teacher's head is a buffer outside the state dict: not trained, saved or
    exported.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        signal: Signal,
        teacher_head_VE: Float[Tensor, "V E"] | None,
        parts: TokenLoss,
        lambda_traj: float,
    ) -> None:
        """`teacher_head_VE` comes with the signal `hidden` and no other.

        Raises UserError for a student whose logits are not its head's, or are not the
        teacher's.
        """
        super().__init__()
        assert (teacher_head_VE is not None) == (signal == "hidden")
        self.student: Any = student
        refuse_logit_transforms(
            cast("Any", student).config.to_dict(),
            head_bias=_head_bias(student),
            where="the student",
        )
        head_VD = student_head(student)
        self.loss = FusedLoss(head_VD, Recipe(parts=parts, lambda_traj=lambda_traj))
        self.num_ids = len(head_VD)
        """V; kept, since a sharded head has no shape."""
        self._signal = signal
        self.teacher_head_VE: Tensor | None
        self.register_buffer("teacher_head_VE", None, persistent=False)
        if teacher_head_VE is not None:
            self.set_teacher_head(teacher_head_VE)

    def set_teacher_head(self, teacher_head_VE: Float[Tensor, "V E"]) -> None:
        """What hidden states of the teacher are multiplied with from here on."""
        if self.num_ids != len(teacher_head_VE):
            raise UserError(
                f"the student's output head has {self.num_ids} rows, the teacher's"
                f" {len(teacher_head_VE)}; distillation over the full vocabulary needs"
                " the same tokenizer and head size"
            )
        self.teacher_head_VE = teacher_head_VE.detach()

    def forward(
        self,
        input_ids_L: Int[Tensor, "L"],
        length_S: Int[Tensor, "S"],
        trunk_S: Int[Tensor, "S"],
        branch_S: Int[Tensor, "S"],
        position_TU: Int[Tensor, "TU"],
        response_ids_T: Int[Tensor, "T"],
        sampled_logp_T: Float[Tensor, "T_or_0"],
        weight_T: Float[Tensor, "T"],
        window_Q: Int[Tensor, "Q"],
        target_ids_QK: Int[Tensor, "Q K"],
        target_weights_QK: Float[Tensor, "Q K"],
        *signal: Tensor,
    ) -> tuple[Float[Tensor, ""], ...]:
        """The `Losses` of the micro-batch, as a plain tuple: sums in nats, the step
        divides.

        Flat, because the engine moves what it is passed, not what lies inside; the
        sequence and its segments are as in `TrainBatch`. `sampled_logp_T` is empty
        where the student did not sample. `signal` is of the T positions: hidden (T, E);
        or ids (T, M) and their log-probabilities (T, M); or the teacher's
        log-probability (T,). Without a trained position all sums are 0, and the
        backward pass still runs through every weight (with gradient 0), as the other
        ranks' does.
        """
        layout = Layout(length_S, trunk_S, branch_S)
        hidden_1LD = self.student.base_model(
            input_ids=input_ids_L[None],
            position_ids=layout.place_L[None],
            use_cache=False,
            layout=layout,
        ).last_hidden_state
        positions = Positions(
            teacher=self._teacher(*signal),
            response_ids_T=response_ids_T,
            sampled_logp_T=sampled_logp_T,
            weight_T=weight_T,
            window_Q=window_Q,
            target_ids_QK=target_ids_QK,
            target_weights_QK=target_weights_QK,
        )
        losses: tuple[Tensor, ...] = self.loss(
            hidden_1LD[0, position_TU], positions=positions
        )
        return losses

    def _teacher(self, *signal: Tensor) -> Teacher:
        if self._signal == "hidden":
            assert self.teacher_head_VE is not None
            (hidden_TE,) = signal
            return WholeTeacher(hidden_TE=hidden_TE, head_VE=self.teacher_head_VE)
        if self._signal == "topk":
            ids_TM, logq_TM = signal
            return TopkTeacher(ids_TM=ids_TM, logq_TM=logq_TM)
        (logq_T,) = signal
        return SampledTeacher(logq_T=logq_T)


class FusedLoss(nn.Module):
    """Trained hidden states -> losses, past the student's output head.

    The head is never called: the loss wants its weight. Held here too, the weight is
    this module's, so that an engine that shards weights has it whole while this one
    runs.
    """

    def __init__(self, head_VD: nn.Parameter, recipe: Recipe) -> None:
        super().__init__()
        self.head_VD, self._recipe = head_VD, recipe
        self._num_ids = len(head_VD)  # kept, since a sharded head has no shape

    def forward(
        self, hidden_TUD: Float[Tensor, "TU D"], *, positions: Positions
    ) -> tuple[Float[Tensor, ""], ...]:
        """See `Losses`; a plain tuple, in which an engine's hooks find the tensors."""
        cut = tiles(self._num_ids, hidden_TUD.device)
        return (
            *distillation_losses(
                hidden_TUD, self.head_VD, positions, self._recipe, cut
            ),
        )


def student_head(student: Any) -> nn.Parameter:
    """Weight of the student's output head, (V, D); its embedding, where the two are
    tied.
    """
    weight: nn.Parameter = student.get_output_embeddings().weight
    return weight


def load_student(
    folder: Path, *, dtype: torch.dtype, gradient_checkpointing: bool
) -> nn.Module:
    """The student of a Hugging Face folder (safetensors), in training mode.

    Raises UserError for one whose rollouts cannot lie beside each other in one
    sequence, or whose weights would not fit the engines (see `check_experts`).
    """
    check_experts(folder, field="learner.model")
    disable_progress_bar()
    student: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=PACKED,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    check_isolation(student)
    if gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    return student.train()  # type: ignore[no-any-return]


def _head_bias(student: Any) -> str | None:
    bias = getattr(student.get_output_embeddings(), "bias", None)
    return None if bias is None else "lm_head.bias"


__all__ = ["DistillationModel", "load_student", "student_head"]
