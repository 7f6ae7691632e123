"""Whether a step's update can be trusted, by its receipts, before the optimizer takes
it.
"""

import math

from topd_ray.config import Config
from topd_ray.driver.step import StepBooks
from topd_ray.messages import LossSums


def complaints(config: Config, books: StepBooks) -> list[str]:
    """What is wrong with a step, each with the field that draws its line; none where it
    is well.

    A gradient that is not finite shows only when the ranks have added theirs up
    (`StepReport`).
    """
    found = []
    sums = sum((one.sums for ranks in books.learned for one in ranks), LossSums())
    if not (math.isfinite(sums.opd) and math.isfinite(sums.traj)):
        found.append("loss is not finite")
    return found + (_of_rollouts(config, books, sums) if _samples(config) else [])


def suspects(books: StepBooks) -> list[str]:
    """Rollouts of the chunks whose loss is not finite; all where no chunk stands
    out.
    """
    chunks = zip(books.learned_ids, books.learned, strict=True)
    named = [
        name
        for names, ranks in chunks
        if not all(
            math.isfinite(one.sums.opd) and math.isfinite(one.sums.traj)
            for one in ranks
        )
        for name in names
    ]
    return named or [name for names in books.learned_ids for name in names]


def _samples(config: Config) -> bool:
    return config.objective.trajectory != "given"


def _of_rollouts(config: Config, books: StepBooks, sums: LossSums) -> list[str]:
    health, found = config.health, []
    num_tokens = sum(one.num_tokens for one in books.rollouts)
    num_rollouts = sum(len(one.rollout_ids) for one in books.rollouts)
    # a rewrite is the teacher's: nothing was sampled by the student that is trained on
    # it
    kl = 0.0 if config.uses_rewrites else sums.rollout_kl / max(1, sums.num_tokens)
    if not kl <= health.max_rollout_kl:
        found.append(
            f"rollout_kl {kl:.3g} nats a token exceeds"
            f" health.max_rollout_kl={health.max_rollout_kl:g}: the policy that sampled"
            " is not the one that is trained"
        )
    entropy = sum(one.entropy_sum for one in books.rollouts) / max(1, num_tokens)
    if not entropy >= health.min_entropy:
        found.append(
            f"entropy {entropy:.3g} nats a token is below health.min_entropy="
            f"{health.min_entropy:g}: the student says the same whatever is asked"
        )
    truncated = sum(one.num_truncated for one in books.rollouts) / num_rollouts
    if health.max_truncated is not None and truncated >= health.max_truncated:
        found.append(
            f"{truncated:.0%} of the rollouts were cut at the token limit"
            f" (health.max_truncated={health.max_truncated:g}): raise"
            " rollout.max_response_tokens"
        )
    return found
