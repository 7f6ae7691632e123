"""One small micro-batch in float64 for the losses, with everything in it that can be
odd.

Axes: T trained positions, TU those and window-only ones, D, E widths, V vocabulary, Q
window positions, K ids of a target, M ids that the teacher kept.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tests.unit.learner import reference
from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.fused import Losses, Tiles, distillation_losses
from topd_ray.learner.loss import Positions, Recipe
from topd_ray.learner.teacher import SampledTeacher, Teacher, TopkTeacher, WholeTeacher
from topd_ray.messages import PAD

V, D, E, M = 11, 5, 7, 3
TRAINED, BEHIND = 6, 3
WHOLE = Tiles(chunk=100, block=100)


@dataclass(frozen=True)
class Case:
    """A micro-batch, and what is made of it."""

    hidden_TUD: Tensor
    head_VD: Tensor
    positions: Positions
    recipe: Recipe
    num_ids: int = V

    def losses(self, cut: Tiles = WHOLE) -> Losses:
        return distillation_losses(
            self.hidden_TUD,
            self.head_VD,
            self.positions,
            self.recipe,
            cut,
            self.num_ids,
        )

    def outcome(self, cut: Tiles = WHOLE) -> list[Tensor]:
        """All sums, and the gradient of hidden states and head."""
        leaves = [
            x.detach().clone().requires_grad_() for x in (self.hidden_TUD, self.head_VD)
        ]
        losses = replace(self, hidden_TUD=leaves[0], head_VD=leaves[1]).losses(cut)
        return [*losses[:4], *torch.autograd.grad(losses.total, leaves)]

    def want(self) -> list[Tensor]:
        """Total, token, traj and both gradients by autograd on the whole vocabulary."""
        leaves = [
            x.detach().clone().requires_grad_() for x in (self.hidden_TUD, self.head_VD)
        ]
        token, traj = reference.losses(*leaves, self.positions, self.recipe.token_loss)
        total = token + self.recipe.lambda_traj * traj
        return [total, token, traj, *torch.autograd.grad(total, leaves)]

    @property
    def logp(self) -> Tensor:
        return (self.hidden_TUD @ self.head_VD.T).log_softmax(1)

    def with_positions(self, **fields: object) -> "Case":
        return replace(self, positions=replace(self.positions, **fields))


def make_case(
    *,
    signal: str = "hidden",
    token_loss: TokenLoss | None = None,
    lambda_traj: float = 0.3,
    seed: int = 0,
) -> Case:
    """Overlapping windows (positions repeat, unsorted) on and behind the rows; ids that
    repeat.
    """
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    ids_QK = torch.tensor(
        [[1, 2, 1, 3], [4, PAD, PAD, PAD], [5, 5, 5, 5], [0, 9, PAD, PAD]]
    )
    weights_QK = torch.rand(ids_QK.shape, generator=rng, dtype=torch.float64)
    weights_QK = weights_QK.masked_fill(ids_QK == PAD, 0.0)
    response_ids_T = torch.randint(V, (TRAINED,), generator=rng)
    whole = WholeTeacher(hidden_TE=normal(TRAINED, E), head_VE=normal(V, E))
    logq_TV = (whole.hidden_TE @ whole.head_VE.T).log_softmax(1)
    logq_TM, ids_TM = logq_TV.topk(M, 1)
    logq_T = logq_TV.gather(1, response_ids_T[:, None])[:, 0]
    teachers: dict[str, Teacher] = {
        "hidden": whole,
        "topk": TopkTeacher(ids_TM=ids_TM, logq_TM=logq_TM),
        "sampled": SampledTeacher(logq_T=logq_T),
    }
    return Case(
        hidden_TUD=normal(TRAINED + BEHIND, D),
        head_VD=normal(V, D),
        positions=Positions(
            teacher=teachers[signal],
            response_ids_T=response_ids_T,
            sampled_logp_T=-torch.rand(TRAINED, generator=rng, dtype=torch.float64)
            - 1.0,
            weight_T=torch.tensor([1.0, 0.5, 0.0, 1.0, 0.25, 1.0], dtype=torch.float64),
            reverse_T=torch.zeros(0, dtype=torch.bool),
            forward_T=torch.zeros(0, dtype=torch.bool),
            window_Q=torch.tensor([7, 2, 7, 1]),
            target_ids_QK=ids_QK,
            target_weights_QK=weights_QK / weights_QK.sum(1, keepdim=True),
        ),
        recipe=Recipe(token_loss=token_loss or TokenLoss(), lambda_traj=lambda_traj),
    )


def compositions() -> list[tuple[str, TokenLoss]]:
    """Every signal with every token loss it can have."""
    tensors = [
        TokenLoss(divergence=name, token_clip=clip, kd_ratio=ratio, jsd_beta=0.3)
        for name in ("reverse_kl", "forward_kl", "jsd")
        for clip in (None, 0.9)
        for ratio in (1.0, 0.5, 0.0)
    ]
    return [
        *(("hidden", one) for one in tensors),
        *(
            ("topk", replace(one, tail=tail))
            for one in tensors
            for tail in ("bucket", "renormalise")
        ),
        ("hidden", TokenLoss(forward_above_entropy=0.8)),
        ("hidden", TokenLoss(forward_above_entropy=0.8, token_clip=2.0)),
        ("sampled", TokenLoss()),
        ("sampled", TokenLoss(kd_ratio=0.5)),
    ]
