"""Next tokens of a batch, each drawn with the seed of its request.

Axes: R requests, B of them still live, T tokens of the longest response, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from topd_ray.engines.protocols import GenerationRequest


class Sampler:
    """Draws a token for each request: greedily, or by inverse transform sampling.

    A uniform draw becomes a token by the settings of its request alone, so that a
    request's result does not depend on the other requests of the batch.
    """

    def __init__(
        self, requests: Sequence[GenerationRequest], device: torch.device
    ) -> None:
        temperature_R = torch.tensor(
            [r.temperature for r in requests], dtype=torch.float64
        )
        self._greedy_R = (temperature_R == 0).to(device)
        self._temperature_R = temperature_R.where(temperature_R > 0, 1.0).to(device)
        self._top_p_R = torch.tensor(
            [r.top_p for r in requests], dtype=torch.float64
        ).to(device)
        self._top_k_R = torch.tensor([r.top_k for r in requests]).to(device)
        self._cut_R = (self._top_p_R < 1) | (self._top_k_R > 0)
        self._any_free = bool((~self._greedy_R & ~self._cut_R).any())
        self._any_cut = bool((~self._greedy_R & self._cut_R).any())
        self._uniform_RT = _uniforms(requests).to(device)

    @torch.inference_mode()
    def draw(self, logits_BV: Tensor, live_B: Tensor, step: int) -> Tensor:
        """Return the next token id of each live request, (B,).

        Kinds of sampling that no request uses are not computed: a sort over the
        vocabulary costs more than the rest.

        Args:
            logits_BV: Logits of the live requests.
            live_B: Their indices into R.
            step: Number of tokens decoded before.
        """
        ids_B = logits_BV.argmax(-1)
        if not (self._any_free or self._any_cut):
            return ids_B
        p_BV = (logits_BV.double() / self._temperature_R[live_B, None]).softmax(-1)
        uniform_B1 = self._uniform_RT[live_B, step, None]
        if self._any_free:
            ids_B = torch.where(
                self._greedy_R[live_B], ids_B, _inverted(p_BV, uniform_B1)
            )
        if self._any_cut:
            nucleus_BV, order_BV = self._nucleus(p_BV, live_B)
            cut_B = order_BV.gather(1, _inverted(nucleus_BV, uniform_B1)[:, None])[:, 0]
            ids_B = torch.where(
                self._cut_R[live_B] & ~self._greedy_R[live_B], cut_B, ids_B
            )
        return ids_B

    def _nucleus(self, p_BV: Tensor, live_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities, best first and 0 outside the nucleus; and their
        ids.

        The nucleus is the shortest list of the top_k likeliest tokens (of all where
        top_k is 0) whose probability reaches top_p.
        """
        p_BV, order_BV = p_BV.sort(descending=True, stable=True)
        top_k_B1 = self._top_k_R[live_B, None]
        rank_V = torch.arange(p_BV.shape[1], device=p_BV.device)
        p_BV = p_BV.masked_fill((rank_V >= top_k_B1) & (top_k_B1 > 0), 0.0)
        cumulative_BV = p_BV.cumsum(-1)
        reach_B1 = self._top_p_R[live_B, None] * cumulative_BV[:, -1:]
        return p_BV.masked_fill(cumulative_BV - p_BV >= reach_B1, 0.0), order_BV


def _uniforms(requests: Sequence[GenerationRequest]) -> Tensor:
    """Return uniform draws (R, T); each row comes from its request's seed."""
    uniform_RT = torch.zeros(
        len(requests), max(r.max_tokens for r in requests)
    ).double()
    for row, request in enumerate(requests):
        if request.temperature > 0:
            own = uniform_RT[row, : request.max_tokens]
            own.uniform_(generator=torch.Generator().manual_seed(request.seed))
    return uniform_RT


def _inverted(p_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """Return the index (B,) at which the cumulative sum of `p_BV` passes the draw.

    The rows of `p_BV` may have any total.
    """
    cumulative_BV = p_BV.cumsum(-1)
    target_B1 = uniform_B1 * cumulative_BV[:, -1:]
    index_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    return index_B1[:, 0].clamp(max=p_BV.shape[1] - 1)


__all__ = ["Sampler"]
