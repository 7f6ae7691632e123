"""Which token of a packed sequence attends to which, in the form of each kernel.

Axes: L tokens of the sequence, S its segments.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from topd_ray.learner.blocks import block_mask

_RUN_TOKENS = 128
"""Windows of one trunk attend in one call up to this many tokens.

Fewer would leave the kernel waiting for its next call; more would read many keys that
only some of the windows see.
"""


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Tokens that attend in one call: a rollout, or successive windows of one trunk."""

    own: slice
    """The tokens of the run, as a slice of L."""
    before: slice | None
    """The tokens of the trunk that any of the windows sees; None for a rollout."""


class Layout:
    """The segments of one packed sequence, for all layers of a forward pass.

    A rollout (its own trunk) sees itself causally; a window sees the first `branch`
    tokens of its trunk, and itself causally.

    Example: a rollout of 4 tokens and a window of 2 that sees its first 2 tokens::

        layout = Layout(length_S=[4, 2], trunk_S=[0, 0], branch_S=[0, 2])
        layout.place_L  # [0, 1, 2, 3, 2, 3]
        layout.sees(query=5, key=[0, 1, 2, 3, 4, 5])  # [yes, yes, no, no, yes, yes]
    """

    def __init__(
        self,
        length_S: Int[Tensor, "S"],
        trunk_S: Int[Tensor, "S"],
        branch_S: Int[Tensor, "S"],
    ) -> None:
        """Take the fields of `TrainBatch`; the segments fill the sequence in order."""
        start_S = length_S.cumsum(0) - length_S
        index_L = torch.arange(int(length_S.sum()), device=length_S.device)
        self._segment_L = torch.repeat_interleave(length_S)
        self._trunk_L = trunk_S[self._segment_L]
        self._start_L = start_S[self._segment_L]
        self._trunk_start_L = start_S[self._trunk_L]
        end_S = start_S[trunk_S] + branch_S
        self._end_L = torch.where(branch_S > 0, end_S, 0)[self._segment_L]
        self.place_L = index_L + (branch_S - start_S)[self._segment_L]
        """Position ids; a window's start where its branch of the trunk ends."""
        self.longest = int(self.place_L.max()) + 1
        """Most tokens that any token sees, itself included, without a sliding window.

        A layer whose sliding window is no shorter attends as if it had none.
        """
        self.runs = _runs(length_S.tolist(), trunk_S.tolist(), branch_S.tolist())
        self._masks: dict[tuple[int, int | None], Tensor] = {}
        self._blocks: dict[int | None, BlockMask] = {}

    def sees(
        self,
        query: Int[Tensor, "..."],
        key: Int[Tensor, "..."],
        reach: int | None = None,
    ) -> Bool[Tensor, "..."]:
        """Return whether the token at index `query` attends to the one at `key`.

        Args:
            query: Indices into L.
            key: Indices into L, of a shape that broadcasts.
            reach: How many tokens back a layer looks, itself included; None for all.

        Returns:
            The answer element by element.
        """
        own = (self._segment_L[query] == self._segment_L[key]) & (key <= query)
        before = (self._trunk_L[query] == self._segment_L[key]) & (
            key < self._end_L[query]
        )
        if reach is None:
            return own | before
        return (own | before) & (self.place_L[query] - self.place_L[key] < reach)

    def mask(
        self, run: TokenRun, reach: int | None, dtype: torch.dtype
    ) -> Tensor | None:
        """Return `sees` as the mask that is added to the scores of a run.

        None where a causal mask is the same, which the kernel has built in.
        """
        if run.before is None and reach is None:
            return None
        if (run.own.start, reach) not in self._masks:
            index_L = torch.arange(len(self.place_L))
            query_M = index_L[run.own]
            key_BM = (
                torch.cat([index_L[run.before], query_M]) if run.before else query_M
            )
            seen = self.sees(query_M[:, None], key_BM, reach)
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
            self._masks[run.own.start, reach] = mask[None, None]
        return self._masks[run.own.start, reach]

    def blocks(self, reach: int | None = None) -> BlockMask:
        """Return `sees` as the block mask of flex attention."""
        if reach not in self._blocks:
            far = reach or len(self.place_L)
            end_L = 1 + torch.arange(len(self.place_L), device=self.place_L.device)
            # Where a trunk would end if the window's tokens followed it at once.
            trunk_end_L = self._trunk_start_L + self.place_L + 1
            seen = [
                (torch.maximum(self._start_L, end_L - far), end_L),
                (torch.maximum(self._trunk_start_L, trunk_end_L - far), self._end_L),
            ]
            self._blocks[reach] = block_mask(
                seen, lambda _batch, _head, query, key: self.sees(query, key, reach)
            )
        return self._blocks[reach]


def _runs(
    lengths: list[int], trunks: list[int], branches: list[int]
) -> tuple[TokenRun, ...]:
    starts = [0, *accumulate(lengths)]
    runs: list[TokenRun] = []
    for s, (trunk, branch) in enumerate(zip(trunks, branches, strict=True)):
        own = slice(starts[s], starts[s + 1])
        first = starts[trunk]
        before = slice(first, first + branch) if branch else None
        last = runs[-1] if runs else None
        if (
            before
            and last
            and last.before
            and last.before.start == first
            and own.stop - last.own.start <= _RUN_TOKENS
        ):
            own = slice(last.own.start, own.stop)
            before = slice(first, max(before.stop, last.before.stop))
            runs[-1] = TokenRun(own=own, before=before)
        else:
            runs.append(TokenRun(own=own, before=before))
    return tuple(runs)


__all__ = ["Layout", "TokenRun"]
