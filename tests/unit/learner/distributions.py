"""Distributions to compare, and the compositions of a token's loss.

Axes: T positions, V vocabulary.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from topd_ray.learner.divergence import TokenLoss

V = 9
FORMS = [
    TokenLoss(divergence="reverse_kl"),
    TokenLoss(divergence="forward_kl"),
    *(TokenLoss(divergence="jsd", jsd_beta=beta) for beta in (0.0, 0.1, 0.5, 0.9, 1.0)),
]
forms = pytest.mark.parametrize(
    "token_loss",
    FORMS,
    ids=lambda token_loss: f"{token_loss.divergence}-{token_loss.jsd_beta}",
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def logs(tokens: int, seed: int, scale: float = 2.0) -> Tensor:
    return (scale * normal(tokens, V, seed=seed)).log_softmax(1)


def rows(log_TV: Tensor) -> list[list[float]]:
    return log_TV.exp().tolist()


@st.composite
def distributions(draw: st.DrawFn) -> Tensor:
    """Three rows of logs, from flat to nearly all mass on one id."""
    values = st.lists(st.floats(-30.0, 30.0), min_size=3 * V, max_size=3 * V)
    return torch.tensor(draw(values), dtype=torch.float64).view(3, V).log_softmax(1)


composed = pytest.mark.parametrize(
    "token_loss",
    [
        *FORMS,
        *(replace(form, token_clip=0.8) for form in FORMS),
        *(replace(form, forward_above_entropy=1.0) for form in FORMS),
        TokenLoss(forward_above_entropy=1.0, token_clip=1.5),
    ],
    ids=str,
)
