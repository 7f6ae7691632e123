"""One actor process, as far as a handle needs it; untyped, as Ray's own calls are."""

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Protocol

from topd_ray.actors.protocols import Ref

Reference = Ref[Any]
"""To a value whose type only the calling handle knows."""


class Stream(Protocol):
    """The references that a streaming call yields, as they come."""

    def __aiter__(self) -> AsyncIterator[Reference]: ...

    def completed(self) -> Awaitable[object]:
        """Await the end of the call; raises what it raised."""
        ...


class Process(Protocol):
    """One actor process. It serves its calls in the order of submission."""

    def call(
        self, method: str, *arguments: object, num_returns: int = 1
    ) -> Sequence[Reference]:
        """Submit a call; return a reference to each of its `num_returns` values."""
        ...

    def stream(
        self, method: str, *arguments: object, room: int | None = None
    ) -> Stream:
        """Submit a call that yields; it pauses while `room` items wait to be taken."""
        ...

    def interject(self, method: str, *arguments: object) -> Reference:
        """Submit a call that is served at once, beside the one that is under way."""
        ...

    def kill(self) -> None:
        """End the process at once."""
        ...
