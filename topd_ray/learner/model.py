"""Micro-batch -> losses: the student, the teacher's frozen output head, and nothing between them.

Axes: R rows, L padded length, T trained positions, D width of the student, E width of the teacher,
V vocabulary, Q window positions, K ids of a soft target.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from topd_ray.errors import UserError
from topd_ray.learner.loss import distillation_sums

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class DistillationModel(nn.Module):
    """Both losses of a micro-batch in one forward pass, so that a sharding engine sees all of it.

    The teacher's head is a buffer outside the state dict: not trained, cast, saved or exported.
    """

    def __init__(
        self, student: nn.Module, teacher_head_VE: Float[Tensor, "V E"], *, lambda_traj: float
    ) -> None:
        super().__init__()
        _check_heads(student, teacher_head_VE)
        self.student: Any = student
        self._lambda_traj = lambda_traj
        self.teacher_head_VE: Tensor
        self.register_buffer("teacher_head_VE", teacher_head_VE.detach(), persistent=False)

    def forward(
        self,
        input_ids_RL: Int[Tensor, "R L"],
        lengths_R: Int[Tensor, "R"],
        position_T: Int[Tensor, "T"],
        teacher_hidden_TE: Float[Tensor, "T E"],
        window_Q: Int[Tensor, "Q"],
        target_ids_QK: Int[Tensor, "Q K"],
        target_weights_QK: Float[Tensor, "Q K"],
        num_chunks: int,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """(L_OPD + lambda L_traj, L_OPD, L_traj) as sums in nats, undivided; the step divides.

        Without a trained position all three are 0, and the backward pass still runs through every
        weight (with gradient 0), as the other ranks' does.
        """
        length = input_ids_RL.shape[1]
        inside_RL = torch.arange(length, device=lengths_R.device) < lengths_R[:, None]
        hidden_RLD = self.student.base_model(
            input_ids=input_ids_RL, attention_mask=inside_RL.long(), use_cache=False
        ).last_hidden_state
        opd, traj = distillation_sums(
            hidden_RLD.flatten(0, 1)[position_T],
            self.student.get_output_embeddings(),
            teacher_hidden_TE,
            self.teacher_head_VE,
            window_Q,
            target_ids_QK,
            target_weights_QK,
            num_chunks=num_chunks,
        )
        return opd + self._lambda_traj * traj, opd, traj


def load_student(folder: Path, *, dtype: torch.dtype, gradient_checkpointing: bool) -> nn.Module:
    """The student of a Hugging Face folder (safetensors), in training mode."""
    student: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    if gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    return student.train()  # type: ignore[no-any-return]


def _check_heads(student: Any, teacher_head_VE: Tensor) -> None:
    """Both models must speak of the same ids, and by hidden state times head alone."""
    num_student, num_teacher = student.get_output_embeddings().weight.shape[0], len(teacher_head_VE)
    if num_student != num_teacher:
        raise UserError(
            f"the student's output head has {num_student} rows, the teacher's {num_teacher}; "
            "distillation over the full vocabulary needs the same tokenizer and head size"
        )
    for name in _LOGIT_TRANSFORMS:
        if getattr(student.config, name, None) not in (None, 1.0):
            raise UserError(
                f"the student's config.json sets {name}={getattr(student.config, name)}; only "
                "models whose logits are their output head times the hidden state can be trained"
            )


__all__ = ["DistillationModel", "load_student"]
