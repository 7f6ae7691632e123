"""Divergences with plain floats and loops, over distributions given as lists; slow and
obvious.
"""

import math
from collections.abc import Sequence

from topd_ray.learner.divergence import TokenLoss

Distribution = Sequence[float]


def kl(p: Distribution, q: Distribution) -> float:
    total = 0.0
    for one, other in zip(p, q, strict=True):
        if one > 0:
            total += one * (math.log(one) - math.log(other)) if other > 0 else math.inf
    return total


def entropy(q: Distribution) -> float:
    return -sum(one * math.log(one) for one in q if one > 0)


def jsd(student: Distribution, teacher: Distribution, beta: float) -> float:
    if beta in (0.0, 1.0):
        return kl(student, teacher) if beta else kl(teacher, student)
    mixture = [beta * q + (1 - beta) * p for p, q in zip(student, teacher, strict=True)]
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def bucketed(p: Distribution, ids: Sequence[int]) -> list[float]:
    """Over the ids and all others together."""
    kept = [p[i] for i in ids]
    rest = [one for i, one in enumerate(p) if i not in ids]
    return [*kept, math.fsum(rest)] if rest else kept


def renormalised(p: Distribution, ids: Sequence[int]) -> list[float]:
    kept = [p[i] for i in ids]
    return [one / math.fsum(kept) for one in kept]


def divergence(
    student: Distribution, teacher: Distribution, token_loss: TokenLoss
) -> float:
    if token_loss.divergence == "jsd":
        nats = jsd(student, teacher, token_loss.jsd_beta)
    elif token_loss.divergence == "reverse_kl":
        nats = kl(student, teacher)
    else:
        nats = kl(teacher, student)
    if (
        token_loss.forward_above_entropy is not None
        and entropy(teacher) > token_loss.forward_above_entropy
    ):
        nats += kl(teacher, student)
    return nats if token_loss.token_clip is None else min(nats, token_loss.token_clip)
