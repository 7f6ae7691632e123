"""Tokenised prompts -> an endless shuffled sequence that can be taken up at any
place.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from topd_ray.messages import Prompt
from topd_ray.seeds import derive_seed


class PromptSource:
    """Deals each prompt once an epoch, in an order fixed by seed and epoch alone.

    `cursor` is the next position, counted over all epochs; a source built with it goes
    on exactly there. A take may span two epochs: nothing is left out at an epoch's end.
    """

    def __init__(
        self, prompts: Sequence[Prompt], *, seed: int, cursor: int = 0
    ) -> None:
        if not prompts or cursor < 0:
            raise ValueError(
                f"{len(prompts)} prompts, cursor={cursor}: need some, and at least 0"
            )
        self._prompts = tuple(prompts)
        self._seed = seed
        self._cursor = cursor
        self._epoch, self._order = 0, self._shuffle(0)

    def __len__(self) -> int:
        """Prompts an epoch."""
        return len(self._prompts)

    @property
    def cursor(self) -> int:
        """Position that the next take starts with."""
        return self._cursor

    def go_to(self, cursor: int) -> None:
        """Take from this position on, whatever was taken before."""
        self._cursor = cursor

    def take(self, num_prompts: int) -> list[Prompt]:
        """The next `num_prompts` positions."""
        if num_prompts < 0:
            raise ValueError(f"num_prompts={num_prompts} is negative")
        start, self._cursor = self._cursor, self._cursor + num_prompts
        return [self.at(position) for position in range(start, self._cursor)]

    def at(self, position: int) -> Prompt:
        """The prompt of one position, taken or not; moves nothing, so lost work can be
        redone.
        """
        epoch, place = divmod(position, len(self._prompts))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        prompt = self._prompts[int(self._order[place])]
        return replace(prompt, position=position)

    def _shuffle(self, epoch: int) -> NDArray[np.intp]:
        # Raw PCG64 output and a stable sort: numpy promises the stream of a bit
        # generator for ever, but not that of Generator.permutation, and a resumed run
        # may meet another numpy.
        keys = np.random.PCG64(derive_seed(self._seed, epoch, "prompt order"))
        return np.argsort(keys.random_raw(len(self._prompts)), kind="stable")
