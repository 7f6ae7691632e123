"""Deal prompts in a shuffled, endless order that can resume at any position."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from topd_ray.messages import Prompt
from topd_ray.seeds import derive_seed


class PromptSource:
    """Deals each prompt once an epoch, in an order that seed and epoch alone decide.

    `cursor` is the next position, counted over all epochs; a source made with the
    cursor of another continues it exactly. A take may span two epochs: no prompt is
    left out at the end of an epoch.

    Example: of 3 prompts, positions 0 to 2 are the first epoch and 3 to 5 the second.
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
        self._epoch = 0
        self._order = self._shuffle(0)

    def __len__(self) -> int:
        """Return the number of prompts in an epoch."""
        return len(self._prompts)

    @property
    def cursor(self) -> int:
        """Return the position that the next take starts with."""
        return self._cursor

    def go_to(self, cursor: int) -> None:
        """Make `cursor` the position that the next take starts with."""
        self._cursor = cursor

    def take(self, num_prompts: int) -> list[Prompt]:
        """Return the prompts of the next `num_prompts` positions."""
        if num_prompts < 0:
            raise ValueError(f"num_prompts={num_prompts} is negative")
        start = self._cursor
        self._cursor += num_prompts
        return [self.at(position) for position in range(start, self._cursor)]

    def at(self, position: int) -> Prompt:
        """Return the prompt of one position, taken or not, and move no cursor.

        So work that was lost with an actor can be done again.
        """
        epoch, place = divmod(position, len(self._prompts))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = self._shuffle(epoch)
        prompt = self._prompts[int(self._order[place])]
        return replace(prompt, position=position)

    def _shuffle(self, epoch: int) -> NDArray[np.intp]:
        # Raw PCG64 output and a stable sort: numpy promises the stream of a bit
        # generator for ever, but not that of Generator.permutation, and a resumed run
        # may meet another numpy.
        keys = np.random.PCG64(derive_seed(self._seed, epoch, "prompt order"))
        return np.argsort(keys.random_raw(len(self._prompts)), kind="stable")
