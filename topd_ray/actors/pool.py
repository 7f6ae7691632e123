"""Actors of one kind that take turns."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

H = TypeVar("H")


class Pool(Generic[H]):
    """Hands out free actors, each for one call at a time, in the order of asking."""

    def __init__(self, handles: Sequence[H]) -> None:
        # A queue serves the caller that has waited longest, so no chunk starves.
        self._free = asyncio.Queue[H]()
        for handle in handles:
            self._free.put_nowait(handle)

    @asynccontextmanager
    async def free(self) -> AsyncIterator[H]:
        """Yield a handle that no other caller has until the block ends."""
        handle = await self._free.get()
        try:
            yield handle
        finally:
            self._free.put_nowait(handle)
