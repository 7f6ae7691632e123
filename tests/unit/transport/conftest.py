"""Ground costs like those of real windows: many exact zeros, cosines elsewhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from topd_ray.transport import TransportProblem

MakeCosts = Callable[..., Tensor]
MakeProblem = Callable[[Tensor], TransportProblem]


@pytest.fixture(scope="session")
def window_costs() -> MakeCosts:
    """Costs between windows of Zipf-distributed tokens and partly changed copies."""

    def make(
        num: int, *, k: int = 50, substituted: float = 0.3, seed: int = 0
    ) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        embedding_VD = torch.randn(1000, 256, generator=rng, dtype=torch.float64)
        frequency_V = 1 / torch.arange(1, 1001, dtype=torch.float64)
        student_WK = torch.multinomial(frequency_V, num * k, True, generator=rng).view(
            num, k
        )
        other_WK = torch.multinomial(frequency_V, num * k, True, generator=rng).view(
            num, k
        )
        keep_WK = torch.rand(num, k, generator=rng) >= substituted
        teacher_WK = torch.where(keep_WK, student_WK, other_WK)
        unit_VD = torch.nn.functional.normalize(embedding_VD, dim=-1)
        cost_WKK = 1 - unit_VD[student_WK] @ unit_VD[teacher_WK].transpose(1, 2)
        same_WKK = student_WK[:, :, None] == teacher_WK[:, None, :]
        return cost_WKK.clamp(0, 2).masked_fill(same_WKK, 0.0)

    return make


@pytest.fixture(scope="session")
def full() -> MakeProblem:
    """A problem without padding."""

    def make(cost_WKL: Tensor) -> TransportProblem:
        num, k, length = cost_WKL.shape
        return TransportProblem(
            cost_WKL, torch.full((num,), k), torch.full((num,), length)
        )

    return make
