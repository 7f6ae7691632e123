"""Micro-batch -> losses: the student and the loss as one torch module.

Axes: L tokens of the sequence, S its segments, T trained positions, TU those and
positions of resampled windows, D width of the student, E width of the teacher, V
vocabulary, R rows of the head (V and padding), M ids the teacher kept, Q window
positions, K ids of a soft target.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from topd_ray.engines.tensors import whole_shape
from topd_ray.errors import UserError
from topd_ray.learner.attention import PACKED, check_isolation
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.fused import distillation_losses, tiles
from topd_ray.learner.inputs import Signal
from topd_ray.learner.layout import Layout
from topd_ray.learner.loss import Positions, Recipe
from topd_ray.learner.sequence_parallel import PACKED_AND_SPLIT, SequenceGroup
from topd_ray.learner.teacher import SampledTeacher, Teacher, TopkTeacher, WholeTeacher
from topd_ray.models.architecture import check_names, load_causal_lm
from topd_ray.models.refusals import refuse_logit_transforms
from topd_ray.models.weight_reader import (
    WeightReader,
    empty_causal_lm,
    fill_with_zeros,
)

ShardWeights = Callable[[nn.Module, Callable[[str, Tensor], Tensor]], None]
"""Loads a model without memory for its weights, by a function that reads one by name.
"""


class DistillationModel(nn.Module):
    """Both losses of a micro-batch in one forward pass.

    One module, because an engine that shards weights gathers them in the hooks of a
    module's forward pass. The teacher's head is a buffer outside the state dict: it is
    not trained, saved or exported.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        num_ids: int,
        signal: Signal,
        teacher_head_VE: Float[Tensor, "V E"] | None,
        token_loss: TokenLoss,
        lambda_traj: float,
    ) -> None:
        """Take the student and the losses that it is trained with.

        Args:
            student: The model, as `load_student` returns it.
            num_ids: V, as `models.vocabulary.num_ids`; rows of a head behind it are
                padding.
            signal: The kind of the teacher's signal.
            teacher_head_VE: The teacher's output head, with the signal `hidden` alone.
            token_loss: How the loss of one token is composed.
            lambda_traj: Weight of the trajectory loss.

        Raises:
            UserError: The student's logits are not the product of hidden states and
                head, or a head has fewer rows than there are ids.
        """
        super().__init__()
        assert (teacher_head_VE is not None) == (signal == "hidden")
        self.student: Any = student
        refuse_logit_transforms(
            cast("Any", student).config.to_dict(),
            head_bias=_head_bias(student),
            where="the student",
        )
        head_RD = student_head(student)
        self.num_ids = num_ids
        """V, the number of ids."""
        self._refuse_short_head("student", head_RD)
        self.loss = FusedLoss(
            head_RD, Recipe(token_loss=token_loss, lambda_traj=lambda_traj), num_ids
        )
        self.sequence_group: SequenceGroup | None = None
        """The ranks that share a sequence; None where this rank has it whole."""
        self._signal = signal
        self.teacher_head_VE: Tensor | None
        self.register_buffer("teacher_head_VE", None, persistent=False)
        if teacher_head_VE is not None:
            self.set_teacher_head(teacher_head_VE)

    def set_teacher_head(self, teacher_head_VE: Float[Tensor, "V E"]) -> None:
        """Replace the teacher's output head; raise UserError if it has under V rows."""
        self._refuse_short_head("teacher", teacher_head_VE)
        before = self.teacher_head_VE
        device = teacher_head_VE.device if before is None else before.device
        self.teacher_head_VE = teacher_head_VE.detach().to(device)

    def _refuse_short_head(self, role: str, head_RD: Tensor) -> None:
        num_rows, _ = whole_shape(head_RD)
        if num_rows < self.num_ids:
            raise UserError(
                f"the {role}'s output head has {num_rows} rows, the tokenizer"
                f" {self.num_ids} ids; every id needs a row"
            )

    def forward(
        self,
        input_ids_L: Int[Tensor, "L"],
        length_S: Int[Tensor, "S"],
        trunk_S: Int[Tensor, "S"],
        branch_S: Int[Tensor, "S"],
        position_TU: Int[Tensor, "TU"],
        response_ids_T: Int[Tensor, "T"],
        sampled_logp_T: Float[Tensor, "T"],
        weight_T: Float[Tensor, "T"],
        reverse_T: Bool[Tensor, "T_or_0"],
        forward_T: Bool[Tensor, "T_or_0"],
        window_Q: Int[Tensor, "Q"],
        target_ids_QK: Int[Tensor, "Q K"],
        target_weights_QK: Float[Tensor, "Q K"],
        *signal: Tensor,
    ) -> tuple[Float[Tensor, ""], ...]:
        """Return the `Losses` of the micro-batch as a plain tuple.

        The arguments are those of `inputs.forward_inputs`. They are flat, because the
        engine moves the tensors that it is passed to its device, not those inside other
        objects. Without a trained position all sums are 0, and the backward pass still
        runs through every weight (with gradient 0): the collectives need every rank.

        Args:
            input_ids_L: As in `TrainBatch`, like all up to `target_weights_QK`. With
                a `sequence_group` all its tokens, and of the positions those that
                `own_part` leaves to this rank.
            length_S: Lengths of the segments.
            trunk_S: The segment that each continues.
            branch_S: Tokens of it that each sees.
            position_TU: The hidden states that predict trained tokens.
            response_ids_T: The response tokens.
            sampled_logp_T: inf where the student did not sample.
            weight_T: Weights of the token losses.
            reverse_T: Where reverse KL counts.
            forward_T: Where forward KL counts.
            window_Q: Places of the soft targets in T + U.
            target_ids_QK: Ids of the soft targets.
            target_weights_QK: The soft targets.
            signal: The teacher's at the T positions: hidden states (T, E); or ids and
                their log-probabilities (T, M); or log-probabilities (T,).

        Returns:
            Sums in nats, float64; the step divides them.
        """
        layout = Layout(length_S, trunk_S, branch_S)
        split: dict[str, Any] = {}
        own = slice(0, len(input_ids_L))
        if self.sequence_group is not None:
            split["sequence_group"] = self.sequence_group
            own = self.sequence_group.own(len(input_ids_L))
        hidden_1LD = self.student.base_model(
            input_ids=input_ids_L[None, own],
            position_ids=layout.place_L[None, own],
            use_cache=False,
            layout=layout,
            **split,
        ).last_hidden_state
        positions = Positions(
            teacher=self._teacher(*signal),
            response_ids_T=response_ids_T,
            sampled_logp_T=sampled_logp_T,
            weight_T=weight_T,
            reverse_T=reverse_T,
            forward_T=forward_T,
            window_Q=window_Q,
            target_ids_QK=target_ids_QK,
            target_weights_QK=target_weights_QK,
        )
        losses: tuple[Tensor, ...] = self.loss(
            hidden_1LD[0, position_TU - own.start], positions=positions
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

    The head is never called: the loss needs its weight. The weight is a parameter of
    this module too, so that an engine that shards weights gathers it while this module
    runs.
    """

    def __init__(self, head_RD: nn.Parameter, recipe: Recipe, num_ids: int) -> None:
        """`num_ids`: V; the rows of the head behind it are padding."""
        super().__init__()
        self.head_RD = head_RD
        self._recipe = recipe
        self._num_ids = num_ids
        self._num_rows, _ = whole_shape(head_RD)

    def forward(
        self, hidden_TUD: Float[Tensor, "TU D"], *, positions: Positions
    ) -> tuple[Float[Tensor, ""], ...]:
        """Return `Losses` as a plain tuple, in which an engine's hooks find tensors."""
        cut = tiles(self._num_rows, hidden_TUD.device)
        return (
            *distillation_losses(
                hidden_TUD, self.head_RD, positions, self._recipe, cut, self._num_ids
            ),
        )


def student_head(student: Any) -> nn.Parameter:
    """Return the output head's weight, (R, D); where tied, it is the embedding."""
    weight: nn.Parameter = student.get_output_embeddings().weight
    return weight


def load_student(
    folder: Path,
    *,
    dtype: torch.dtype,
    gradient_checkpointing: bool,
    splits_sequences: bool = False,
    shard: ShardWeights | None = None,
) -> nn.Module:
    """Return the student of a Hugging Face folder (safetensors), in training mode.

    Args:
        folder: The folder.
        dtype: Number format of the weights.
        gradient_checkpointing: Whether the backward pass recomputes activations.
        splits_sequences: Whether the model may have a `sequence_group`.
        shard: Loads the weights as shares of the ranks; by default they are loaded
            whole.

    Raises:
        UserError: Its rollouts cannot be packed into one sequence, or its weights do
            not fit the engines (see `check_names`).
    """
    check_names(folder, field="learner.model")
    attention = PACKED_AND_SPLIT if splits_sequences else PACKED
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    if shard is None:
        student: Any = load_causal_lm(folder, **options)
        check_isolation(student)
    else:
        # The check runs the model, which no rank could with a share of its weights.
        hollow = empty_causal_lm(folder, **options)
        fill_with_zeros(hollow)
        check_isolation(hollow)
        student = empty_causal_lm(folder, **options)
        shard(student, WeightReader(folder, student).read)
    if gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    return student.train()  # type: ignore[no-any-return]


def _head_bias(student: Any) -> str | None:
    bias = getattr(student.get_output_embeddings(), "bias", None)
    return None if bias is None else "lm_head.bias"


__all__ = ["DistillationModel", "load_student", "student_head"]
