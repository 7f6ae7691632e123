"""A small distillation model, and the gradients of its loss."""

from pathlib import Path

import torch
from torch import Tensor

from tests.tiny import VOCAB
from tests.unit.learner.trees import TEACHER_WIDTH
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.inputs import Signal
from topd_ray.learner.model import DistillationModel, load_student


def make(
    folder: Path,
    *,
    gradient_checkpointing: bool = False,
    signal: Signal = "hidden",
    splits_sequences: bool = False,
) -> DistillationModel:
    student = load_student(
        folder,
        dtype=torch.float32,
        gradient_checkpointing=gradient_checkpointing,
        splits_sequences=splits_sequences,
    )
    head_VE = torch.randn(
        len(VOCAB), TEACHER_WIDTH, generator=torch.Generator().manual_seed(5)
    )
    return DistillationModel(
        student,
        num_ids=len(VOCAB),
        signal=signal,
        teacher_head_VE=head_VE if signal == "hidden" else None,
        token_loss=TokenLoss(kd_ratio=0.75),
        lambda_traj=0.5,
    )


def gradients(model: DistillationModel, *args: Tensor | None) -> dict[str, Tensor]:
    model.zero_grad()
    model(*args)[0].backward()
    return {
        name: p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
