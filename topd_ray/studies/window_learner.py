"""A learner that trains on one window and restores its start, bit for bit."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from topd_ray.config import LearnerConfig
from topd_ray.engines.protocols import NamedArray
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.inputs import forward_inputs
from topd_ray.learner.model import DistillationModel, load_student
from topd_ray.messages import LossSums, TrainBatch
from topd_ray.models.tensors import output_head
from topd_ray.models.vocabulary import num_ids


class WindowLearner:
    """The learner's losses with torch's AdamW in this process, at a constant rate.

    Weights and optimizer are float32 for every `learner.dtype`, and there is no
    dropout: an update depends on the batch and on the updates since the last `restore`,
    nothing else.
    """

    def __init__(
        self,
        config: LearnerConfig,
        *,
        student_folder: Path,
        teacher_folder: Path,
        lr: float,
        lambda_traj: float,
    ) -> None:
        student = load_student(
            student_folder, dtype=torch.float32, gradient_checkpointing=False
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = DistillationModel(
            # eval() turns dropout off, so that an update can be repeated exactly.
            student.eval(),
            num_ids=num_ids(student_folder),
            signal="hidden",
            teacher_head_VE=output_head(teacher_folder).float(),
            token_loss=TokenLoss(),  # L_OPD of the paper: reverse KL, every id
            lambda_traj=lambda_traj,
        ).to(device)
        self._device = device
        self._clip = config.clip
        self._optimizer = torch.optim.AdamW(
            student.parameters(),
            lr=lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over weights and moments, as the learner's own
        )
        self._start = {
            name: weight.detach().clone() for name, weight in student.named_parameters()
        }
        # A copy: the optimizer's own tensors change in place.
        self._optimizer_start = copy.deepcopy(self._optimizer.state_dict())

    def update(self, batch: TrainBatch) -> LossSums:
        """Take one step on the batch and return the losses before it.

        The losses are sums over the batch's tokens, in nats.
        """
        sums = self.differentiate(batch)
        clip_grad_norm_(self._model.student.parameters(), self._clip)
        self._optimizer.step()
        return sums

    def differentiate(self, batch: TrainBatch) -> LossSums:
        """Compute the gradients of the batch's loss per token, and return its sums."""
        inputs = forward_inputs(batch, num_ids=self._model.num_ids)
        loss, token, traj, rollout_kl, *_ = self._model(
            *(tensor.to(self._device) for tensor in inputs)
        )
        num_tokens = len(batch.response_ids_T)
        self._optimizer.zero_grad(set_to_none=True)
        # The normaliser of training: the response tokens of the step.
        (loss / num_tokens).backward()
        return LossSums(
            opd=float(token.detach()),
            traj=float(traj.detach()),
            rollout_kl=float(rollout_kl),
            num_tokens=num_tokens,
            num_window_positions=len(batch.window_Q),
        )

    def gradients(self) -> Iterator[torch.Tensor]:
        """Yield the gradient of every weight, unclipped."""
        for weight in self._model.student.parameters():
            yield weight.grad if weight.grad is not None else torch.zeros_like(weight)

    def restore(self) -> None:
        """Set weights and optimizer to their values at the start."""
        with torch.no_grad():
            for name, weight in self._model.student.named_parameters():
                weight.copy_(self._start[name])
        self._optimizer.load_state_dict(copy.deepcopy(self._optimizer_start))
        self._optimizer.zero_grad(set_to_none=True)

    def weights(self) -> Iterator[NamedArray]:
        """Yield every weight under its Hugging Face name; tied ones come once."""
        for name, weight in self._model.student.named_parameters():
            yield name, weight.detach().cpu().numpy()


__all__ = ["WindowLearner"]
