"""Keys and values of a batch: a slot a request, column l for its l-th token.

Axes: B live slots, S slots, C columns, L tokens of a forward pass, H heads, D width of
a head.
"""

from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topd_ray.messages import Ints

Places = NDArray[np.int64]


def longest_extensions(prompts: list[Ints]) -> Places:
    """Return for each prompt the index of the longest prompt that begins with it.

    Often that is the prompt itself.
    """
    order = sorted(range(len(prompts)), key=lambda index: prompts[index].tolist())
    extension = np.arange(len(prompts))
    # In lexicographic order, the prompts that begin with a prompt come right after it.
    for here, behind in zip(reversed(order[:-1]), reversed(order[1:]), strict=True):
        if np.array_equal(prompts[here], prompts[behind][: len(prompts[here])]):
            extension[here] = extension[behind]
    return extension


class SlotCache:
    """The `past_key_values` of transformers, which the model updates layer by layer.

    The first pass reads the prompts; each slot copies its columns from the prompt's row
    in that pass. Every later pass adds one token to each live slot. Slots are never
    shifted, so a token's states are written once; the live ones are kept at the front.
    """

    def __init__(self, row_S: Tensor, length_S: Tensor) -> None:
        """Take the row of the first pass for each slot, and the prompts' lengths.

        The row begins with the slot's prompt. Its further tokens are beyond the slot's
        end: they are never attended to, and overwritten as the slot grows.
        """
        self._row_S = row_S
        self.length_B = length_S
        self._slot_B = torch.arange(len(row_S), device=row_S.device)
        # keys and values of each layer, (S, C, H, D)
        self._states: list[tuple[Tensor, Tensor]] = []
        self._width = int(length_S.max())

    def update(
        self,
        keys_BHLD: Tensor,
        values_BHLD: Tensor,
        layer: int,
        *_: object,
        **__: object,
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new states; return all keys and values of the live slots."""
        if layer == len(self._states):
            self._states.append((self._spread(keys_BHLD), self._spread(values_BHLD)))
            return keys_BHLD, values_BHLD
        place = (self._slot_B, self.length_B)
        seen = []
        for states_SCHD, new_BHLD in zip(
            self._states[layer], (keys_BHLD, values_BHLD), strict=True
        ):
            states_SCHD[place] = new_BHLD[:, :, 0]
            seen.append(
                states_SCHD[: len(self._slot_B), : self._width + 1].transpose(1, 2)
            )
        return seen[0], seen[1]

    def make_room(self, dtype: torch.dtype) -> Tensor:
        """Make room for one more token a slot.

        Returns the mask of the pass that adds it, (B, 1, 1, columns). It is added to
        the attention scores: 0 where a token is seen, else -inf.
        """
        if self._width == self._states[0][0].shape[1]:
            self._grow()
        columns = torch.arange(self._width + 1, device=self.length_B.device)
        hidden_BC = columns > self.length_B[:, None]
        mask_BC = torch.zeros(hidden_BC.shape, dtype=dtype, device=hidden_BC.device)
        return mask_BC.masked_fill_(hidden_BC, -torch.inf)[:, None, None]

    @torch.inference_mode()
    def advance(self) -> None:
        """Count the token that the last pass added to every live slot."""
        self.length_B += 1
        self._width += 1

    @torch.inference_mode()
    def keep(self, kept: Places) -> Places:
        """Drop all slots but `kept`; return the old slot at each new place.

        Live slots from the back fill the holes, so little is copied.
        """
        slots = np.arange(len(kept))
        holes = np.setdiff1d(slots, kept)
        slots[holes] = kept[kept >= len(kept)]
        hole = torch.from_numpy(holes)
        mover = torch.from_numpy(slots[holes])
        for states_SCHD in chain.from_iterable(self._states):
            states_SCHD[hole, : self._width] = states_SCHD[mover, : self._width]
        self._slot_B = self._slot_B[: len(kept)]
        self.length_B = self.length_B[torch.from_numpy(slots).to(self.length_B.device)]
        self._width = int(self.length_B.max()) if len(kept) else 0
        return slots

    def _spread(self, states_BHLD: Tensor) -> Tensor:
        states_SLHD = states_BHLD.transpose(1, 2)[self._row_S]
        return _widened(states_SLHD, 2 * states_SLHD.shape[1])

    def _grow(self) -> None:
        self._states = [
            (_widened(keys, 2 * keys.shape[1]), _widened(values, 2 * values.shape[1]))
            for keys, values in self._states
        ]


def _widened(states_SCHD: Tensor, columns: int) -> Tensor:
    """Return the states with zeros in further columns.

    Not uninitialised: a masked column is multiplied by 0, and 0 x NaN is NaN.
    """
    slots, held, heads, width = states_SCHD.shape
    wide = states_SCHD.new_zeros(slots, columns, heads, width)
    wide[:, :held] = states_SCHD
    return wide


__all__ = ["Places", "SlotCache", "longest_extensions"]
