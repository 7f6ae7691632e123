"""Logits of some positions -> sums of both losses, and their slope by the logits.

Axes: T trained positions, B those and, behind them, positions of resampled windows, V
vocabulary, Q window positions, K ids of a soft target.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from topd_ray.learner.divergence import (
    TokenDivergence,
    TokenLoss,
    WhichKl,
    divergence,
)
from topd_ray.learner.teacher import (
    SampledTeacher,
    Teacher,
    TopkTeacher,
    sampled_divergence,
    teacher_at,
    topk_divergence,
)

_NO_ID = -1  # any negative id is padding


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """The T trained positions, and the soft targets of some of all B positions."""

    teacher: Teacher
    """The teacher's signal at the T positions."""
    response_ids_T: Int[Tensor, "T"]
    """The response tokens."""
    sampled_logp_T: Float[Tensor, "T"]
    """The student's log-probability of the token when it sampled it; inf where it did
    not.
    """
    weight_T: Float[Tensor, "T"]
    """Weight of each token's loss."""
    reverse_T: Bool[Tensor, "T_or_0"]
    """Where reverse KL counts; empty where all have the divergence of the recipe."""
    forward_T: Bool[Tensor, "T_or_0"]
    """Where forward KL counts."""
    window_Q: Int[Tensor, "Q"]
    """Index into B of each window position; may repeat."""
    target_ids_QK: Int[Tensor, "Q K"]
    """Ids of each soft target; a negative id is padding."""
    target_weights_QK: Float[Tensor, "Q K"]
    """Soft targets; rows sum to 1 over the ids that are no padding."""

    def by_window(self) -> "Positions":
        """Return the same with `window_Q` ascending and padding as id 0 of weight 0."""
        window_Q, order_Q = self.window_Q.sort(stable=True)
        ids_QK = self.target_ids_QK[order_Q]
        return replace(
            self,
            window_Q=window_Q,
            target_ids_QK=ids_QK.clamp(min=0),
            target_weights_QK=self.target_weights_QK[order_Q].masked_fill(
                ids_QK < 0, 0.0
            ),
        )

    def between(self, first: int, last: int, windows: slice) -> "Positions":
        """Return the positions from `first` to `last`.

        `windows` is the slice of Q whose indices lie there.
        """
        trained = slice(min(first, len(self.weight_T)), min(last, len(self.weight_T)))
        return Positions(
            teacher=teacher_at(self.teacher, trained),
            response_ids_T=self.response_ids_T[trained],
            sampled_logp_T=self.sampled_logp_T[trained],
            weight_T=self.weight_T[trained],
            reverse_T=self.reverse_T[trained],
            forward_T=self.forward_T[trained],
            window_Q=self.window_Q[windows] - first,
            target_ids_QK=self.target_ids_QK[windows],
            target_weights_QK=self.target_weights_QK[windows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The loss of a step, before it is divided by the step's response tokens.

    sum_t weight_t x token loss_t + lambda_traj x sum_q KL(target_q || student_q).
    """

    token_loss: TokenLoss
    lambda_traj: float


class BlockSums(NamedTuple):
    """What a block of positions adds to a micro-batch."""

    sums_5: Float[Tensor, "5"]
    """Weighted token losses, cross entropy of the soft targets, `rollout_kl`, and what
    reverse and forward KL are where `WhichKl` counts them; nats, float64.
    """
    slope_BV: Float[Tensor, "B V"] | None
    """d (first sum + lambda_traj x second) / d logits, where it was asked for."""
    logp_T: Float[Tensor, "T"]
    """The student's log-probabilities of the response tokens."""


def block_sums(
    logits_BV: Float[Tensor, "B V"],
    teacher_logits_TV: Float[Tensor, "T V"] | None,
    here: Positions,
    recipe: Recipe,
    *,
    with_slope: bool,
) -> BlockSums:
    """Return the sums of a block of positions, and their slope by its logits.

    Args:
        logits_BV: The student's logits.
        teacher_logits_TV: The teacher's logits, with a WholeTeacher; else None.
        here: The block's positions, as `by_window` orders them.
        recipe: How the losses are composed.
        with_slope: Whether the slope is needed.

    Returns:
        The five sums, the slope or None, and the log-probabilities of the T response
        tokens.
    """
    kd_ratio = recipe.token_loss.kd_ratio
    logp_BV = _log_softmax(logits_BV)
    logp_TV = logp_BV[: len(here.weight_T)]
    logp_T = logp_TV.gather(1, here.response_ids_T[:, None])[:, 0]
    known = _divergence(logp_TV, teacher_logits_TV, here, recipe.token_loss)
    nats_T = known.nats_T
    if kd_ratio != 1.0:
        nats_T = kd_ratio * nats_T - (1.0 - kd_ratio) * logp_T
    logp_QK = logp_BV[here.window_Q[:, None], here.target_ids_QK]
    sums = [
        (here.weight_T * nats_T).sum(dtype=torch.float64),
        -(here.target_weights_QK * logp_QK).sum(dtype=torch.float64),
        rollout_kl(logp_T, here.sampled_logp_T),
        *(
            nats_T.new_zeros((), dtype=torch.float64)
            if part_T is None
            else part_T.sum(dtype=torch.float64)
            for part_T in (known.reverse_T, known.forward_T)
        ),
    ]
    # The slope comes last, because it overwrites the log-probabilities.
    return BlockSums(
        torch.stack(sums),
        _slope(known, logp_BV, here, recipe) if with_slope else None,
        logp_T,
    )


def rollout_kl(
    logp_T: Float[Tensor, "T"], sampled_logp_T: Float[Tensor, "T"]
) -> Float[Tensor, ""]:
    """Return the sum over tokens of exp(d) - 1 - d, d = logp now - logp when sampled.

    Its mean over tokens is an unbiased and never negative estimate (k3; Schulman, 2020)
    of KL(sampling policy || trained policy).

    Args:
        logp_T: The student's log-probabilities of the response tokens.
        sampled_logp_T: The same when it sampled them; inf where it did not.

    Returns:
        The sum in nats over the sampled tokens, float64.
    """
    # d may be 1e-7, and exp(d) - 1 - d is of order d^2: float32 would give noise
    moved_T = logp_T.double() - sampled_logp_T.double()
    terms_T = moved_T.expm1() - moved_T
    return terms_T.masked_fill_(sampled_logp_T.isposinf(), 0.0).sum()


def worst_gap(
    logp_T: Float[Tensor, "T"], sampled_logp_T: Float[Tensor, "T"]
) -> Float[Tensor, "2"]:
    """Return where the log-probability moved most since it was sampled.

    Args:
        logp_T: The student's log-probabilities of the response tokens.
        sampled_logp_T: The same when it sampled them; inf where it did not.

    Returns:
        The index into T and the log-probability there, float64; index -1 where the
        student sampled nothing.
    """
    if not len(logp_T):
        return torch.tensor([-1.0, 0.0], dtype=torch.float64, device=logp_T.device)
    # A gap that is not a number is the worst.
    moved_T = (logp_T - sampled_logp_T).abs().nan_to_num(nan=torch.inf)
    moved_T = moved_T.masked_fill(sampled_logp_T.isposinf(), -1.0)
    at = moved_T.argmax()
    # not moved_T[at], which would wait for the GPU
    place = torch.where(moved_T.take(at) < 0, -1, at)
    return torch.stack([place.double(), logp_T.take(at).double()])


def target_entropy(
    target_ids_QK: Int[Tensor, "Q K"], target_weights_QK: Float[Tensor, "Q K"]
) -> Float[Tensor, ""]:
    """Return the sum of the soft targets' entropies, in nats, float64.

    Cross entropy minus this is KL(target || student).

    Args:
        target_ids_QK: Ids of each soft target; a negative id is padding.
        target_weights_QK: Rows that sum to 1 over these ids.

    Returns:
        One number, nats, over all positions.
    """
    _, distribution_QK = aggregate_targets(target_ids_QK, target_weights_QK.double())
    entropy: Tensor = torch.special.entr(distribution_QK).sum()
    return entropy


def aggregate_targets(
    target_ids_QK: Int[Tensor, "Q K"], target_weights_QK: Float[Tensor, "Q K"]
) -> tuple[Int[Tensor, "Q K"], Float[Tensor, "Q K"]]:
    """Return the same targets with every id once a row, the weights of equal ids added.

    A teacher's continuation repeats tokens, so a row may name an id more than once. The
    target, a distribution over the vocabulary, has the sum there, and only the entropy
    of the sums makes KL(target || student) 0 where the two agree.

    Args:
        target_ids_QK: Ids of each soft target; a negative id is padding.
        target_weights_QK: Their weights.

    Returns:
        Ids in ascending order, -1 where a row has fewer than K, and their weights.
    """
    ids_QK, order_QK = target_ids_QK.sort(1)
    weights_QK = target_weights_QK.gather(1, order_QK).masked_fill(ids_QK < 0, 0.0)
    is_new_QK = torch.ones_like(ids_QK, dtype=torch.bool)
    is_new_QK[:, 1:] = ids_QK[:, 1:] != ids_QK[:, :-1]
    place_QK = is_new_QK.cumsum(1) - 1
    return (
        torch.full_like(ids_QK, _NO_ID).scatter(1, place_QK, ids_QK),
        torch.zeros_like(weights_QK).scatter_add(1, place_QK, weights_QK),
    )


def _divergence(
    logp_TV: Tensor,
    teacher_logits_TV: Tensor | None,
    here: Positions,
    token_loss: TokenLoss,
) -> TokenDivergence:
    where = WhichKl(here.reverse_T, here.forward_T) if len(here.reverse_T) else None
    match here.teacher:
        case TopkTeacher():
            return topk_divergence(logp_TV, here.teacher, token_loss, where)
        case SampledTeacher():
            return sampled_divergence(
                logp_TV, here.teacher, here.response_ids_T, here.sampled_logp_T
            )
        case _:
            assert teacher_logits_TV is not None
            return divergence(
                logp_TV, _log_softmax(teacher_logits_TV), token_loss, where
            )


def _slope(
    known: TokenDivergence, logp_BV: Tensor, here: Positions, recipe: Recipe
) -> Tensor:
    """Return the slope (B, V) of the block's loss; overwrites `logp_BV`.

    The slope of a cross entropy with weight w on id y is w (p - onehot(y)).
    """
    weight_T = here.weight_T
    kd_ratio = recipe.token_loss.kd_ratio
    num_trained = len(weight_T)
    num_behind = len(logp_BV) - num_trained
    slope_BV = known.slope().mul_((kd_ratio * weight_T)[:, None])
    if num_behind:
        slope_BV = torch.cat(
            [slope_BV, slope_BV.new_zeros(num_behind, slope_BV.shape[1])]
        )
    if kd_ratio == 1.0 and not len(here.window_Q):
        return slope_BV
    pull_T = ((1.0 - kd_ratio) * weight_T).to(slope_BV.dtype)
    pull_QK = (recipe.lambda_traj * here.target_weights_QK).to(slope_BV.dtype)
    pull_B = torch.cat([pull_T, pull_T.new_zeros(num_behind)])
    pull_B.index_add_(0, here.window_Q, pull_QK.sum(1))
    slope_BV.addcmul_(logp_BV.exp_(), pull_B[:, None])
    slope_BV[:num_trained].scatter_add_(
        1, here.response_ids_T[:, None], -pull_T[:, None]
    )
    where = (here.window_Q[:, None], here.target_ids_QK)
    slope_BV.index_put_(where, -pull_QK, accumulate=True)
    return slope_BV


def _log_softmax(logits_BV: Tensor) -> Tensor:
    # bfloat16 carries three digits, and a KL is a difference of logs
    return logits_BV.to(
        torch.promote_types(logits_BV.dtype, torch.float32)
    ).log_softmax(1)


__all__ = [
    "BlockSums",
    "Positions",
    "Recipe",
    "aggregate_targets",
    "block_sums",
    "rollout_kl",
    "target_entropy",
    "worst_gap",
]
