"""Actors of one kind that take turns."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any


class Pool:
    """Hands out free actors, one call at a time each; who waits longest is served
    first.
    """

    def __init__(self, kind: str, actors: Sequence[Any]) -> None:
        self._free: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        for index, actor in enumerate(actors):
            self._free.put_nowait((f"{kind}[{index}]", actor))

    @asynccontextmanager
    async def free(self) -> AsyncIterator[tuple[str, Any]]:
        """A name and an actor that is nobody else's until the block ends."""
        who, actor = await self._free.get()
        try:
            yield who, actor
        finally:
            self._free.put_nowait((who, actor))
