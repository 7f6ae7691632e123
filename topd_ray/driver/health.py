"""Whether a step's update can be trusted, judged by its receipts before the
optimizer.
"""

import math

from topd_ray.config import Config
from topd_ray.errors import WeightsError
from topd_ray.messages import LossSums
from topd_ray.records.receipts import LearnReceipt, StepReceipts

_NEARLY_ALL = 0.9
"""Share of cut rollouts that is worth a warning: half of them is usual (paper)."""
_LONGER = (
    "raise rollout.max_response_tokens, or, if the student should have ended, see"
    " whether it was trained to end with a token that `topd check` prints"
)
_NAMED_GAPS = 3
"""Tokens that an error names: one a share, the worst first."""


def complaints(config: Config, receipts: StepReceipts) -> list[str]:
    """Return what is wrong with a step, each with the field that sets the limit.

    A gradient that is not finite shows only when the ranks have added theirs up
    (`StepReport.skipped`).
    """
    problems = []
    sums = sum((receipt.sums for receipt in receipts.learned), LossSums())
    if not (math.isfinite(sums.opd) and math.isfinite(sums.traj)):
        problems.append("loss is not finite")
    if config.objective.trajectory != "given":
        problems += _of_rollouts(config, receipts, sums)
    return problems + _of_probes(config, receipts)


def refuse_mismatch(config: Config, receipts: StepReceipts) -> None:
    """Raise WeightsError where rollout engine and learner compute different models.

    To be called for a step whose rollouts are of the very weights that it trains, and
    before its update. The error names the tokens that differ most.
    """
    sums = sum((receipt.sums for receipt in receipts.learned), LossSums())
    kl = _rollout_kl(sums)
    if not kl > config.on_policy_kl:  # nan is another complaint
        return
    gaps = [r.sums.worst_gap for r in receipts.learned if r.sums.worst_gap is not None]
    gaps.sort(key=lambda gap: gap.nats, reverse=True)
    rows = "; ".join(
        f"rollout {gap.rollout_id}, token {gap.token_id} at {gap.index}: log p"
        f" {gap.engine_logp:.4f} in the engine, {gap.learner_logp:.4f} in the learner"
        for gap in gaps[:_NAMED_GAPS]
    )
    raise WeightsError(
        f"rollout engine and learner do not compute the same model: rollout_kl {kl:.3g}"
        f" nats a token exceeds {config.on_policy_kl:g} (health.max_rollout_kl) in the"
        f" first step, whose rollouts are of the learner's own weights; {rows}. Nothing"
        " was updated. Try rollout.engine.backend=hf, or another dtype of the engine;"
        " raise the limit only if this is rounding"
    )


def _rollout_kl(sums: LossSums) -> float:
    return sums.rollout_kl / max(1, sums.num_sampled)


def suspects(receipts: StepReceipts) -> list[str]:
    """Return the rollouts of shares with a loss that is not finite; else all
    rollouts.
    """
    everyone: list[str] = []
    suspected: list[str] = []
    for learned in receipts.rounds:
        for names, receipt in zip(learned.rollout_ids, learned.receipts, strict=True):
            everyone += names
            if not _is_finite(receipt):
                suspected += names
    # Ranks that share sequences have the same rollouts.
    return list(dict.fromkeys(suspected or everyone))


def _is_finite(receipt: LearnReceipt) -> bool:
    return math.isfinite(receipt.sums.opd) and math.isfinite(receipt.sums.traj)


def _of_rollouts(config: Config, receipts: StepReceipts, sums: LossSums) -> list[str]:
    health = config.health
    problems = []
    num_tokens = sum(receipt.num_tokens for receipt in receipts.rollouts)
    num_rollouts = sum(len(receipt.rollout_ids) for receipt in receipts.rollouts)
    # Comparisons are written so that nan is a complaint.
    kl = _rollout_kl(sums)
    if not kl <= config.max_rollout_kl:
        problems.append(
            f"rollout_kl {kl:.3g} nats a token exceeds"
            f" health.max_rollout_kl={config.max_rollout_kl:g}: the policy that sampled"
            " is not the one that is trained"
        )
    entropy_sum = sum(receipt.entropy_sum for receipt in receipts.rollouts)
    entropy = entropy_sum / max(1, num_tokens)
    if not entropy >= health.min_entropy:
        problems.append(
            f"entropy {entropy:.3g} nats a token is below health.min_entropy="
            f"{health.min_entropy:g}: the student answers every prompt alike"
        )
    num_truncated = sum(receipt.num_truncated for receipt in receipts.rollouts)
    truncated = num_truncated / num_rollouts
    if health.max_truncated is not None and truncated >= health.max_truncated:
        problems.append(
            f"{truncated:.0%} of the rollouts were cut at the token limit"
            f" (health.max_truncated={health.max_truncated:g}): {_LONGER}"
        )
    return problems


def _of_probes(config: Config, receipts: StepReceipts) -> list[str]:
    num_windows = sum(receipt.num_windows for receipt in receipts.probes)
    num_unconverged = sum(receipt.num_unconverged for receipt in receipts.probes)
    share = num_unconverged / max(1, num_windows)
    if share <= config.health.max_unconverged:
        return []
    return [
        f"transport of {num_unconverged} of {num_windows} windows did not converge"
        f" (health.max_unconverged={config.health.max_unconverged:g}): raise"
        " probe.epsilon, or set probe.solver=exact"
    ]


def truncation_notice(receipts: StepReceipts) -> str | None:
    """Return a warning where nearly all rollouts of a step were cut; else None."""
    num_rollouts = sum(len(receipt.rollout_ids) for receipt in receipts.rollouts)
    num_truncated = sum(receipt.num_truncated for receipt in receipts.rollouts)
    if num_truncated < _NEARLY_ALL * num_rollouts:
        return None
    return (
        f"{num_truncated} of {num_rollouts} rollouts were cut at the token limit:"
        f" {_LONGER}"
    )
