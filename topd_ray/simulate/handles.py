"""Handles that look like Ray's, over simulated workers: coroutines that take virtual
time.

    handle.method.options(...).remote(...)  ->  references, or a stream

Calls of one actor are served in the order of submission, one at a time a lane; a
method's lane is what Ray calls its concurrency group. A call takes its arguments when
they are there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

Reference = asyncio.Future[Any]


class SimulatedActor:
    """A simulated worker behind the calls that an actor handle has."""

    def __init__(
        self, worker: Any, *, latency_s: float, lanes: Mapping[str, str] | None = None
    ) -> None:
        """`latency_s`: from the driver's call until the worker has it. `lanes`: method
        -> lane.
        """
        self._worker, self._latency_s = worker, latency_s
        self._lane_of = dict(lanes or {})
        self._turns: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> "_Method":
        return _Method(self, name)

    def start(self, name: str, *args: Any, **kwargs: Any) -> list[Reference]:
        """One call; `num_returns` references."""
        num_returns = kwargs.pop("num_returns")
        references = [
            asyncio.get_running_loop().create_future() for _ in range(num_returns)
        ]
        self._run(self._serve(references, name, args, kwargs))
        return references

    def stream(self, name: str, *args: Any, **kwargs: Any) -> "SimulatedStream":
        """One streaming call; at most `room` items wait to be taken."""
        stream = SimulatedStream(kwargs.pop("room"))
        self._run(self._pump(stream, name, args, kwargs))
        return stream

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # a task that nobody holds may be collected
        task.add_done_callback(self._tasks.discard)

    def _turn(self, name: str) -> asyncio.Lock:
        return self._turns.setdefault(self._lane_of.get(name, ""), asyncio.Lock())

    async def _serve(
        self, references: list[Reference], name: str, args: Any, kwargs: dict[str, Any]
    ) -> None:
        await asyncio.sleep(self._latency_s)
        try:
            async with self._turn(name):
                inputs = [await _value(argument) for argument in args]
                value = await getattr(self._worker, name)(*inputs, **kwargs)
        except Exception as error:  # an actor's error travels in its references
            for reference in references:
                reference.set_exception(error)
            return
        parts = [value] if len(references) == 1 else value
        for reference, part in zip(references, parts, strict=True):
            reference.set_result(part)

    async def _pump(
        self, stream: "SimulatedStream", name: str, args: Any, kwargs: dict[str, Any]
    ) -> None:
        await asyncio.sleep(self._latency_s)
        async with self._turn(name):
            async for item in getattr(self._worker, name)(*args, **kwargs):
                await stream.put(item)
        await stream.end()


class SimulatedStream:
    """What a streaming call yields, as it comes."""

    _END = object()

    def __init__(self, room: int) -> None:
        self._items: asyncio.Queue[Any] = asyncio.Queue(room)
        self._ended = asyncio.Event()

    async def put(self, item: Any) -> None:
        """Wait for room."""
        await self._items.put(item)

    async def end(self) -> None:
        """Nothing more is to come."""
        self._ended.set()
        await self._items.put(self._END)

    async def __aiter__(self) -> AsyncIterator[Reference]:
        while (item := await self._items.get()) is not self._END:
            reference = asyncio.get_running_loop().create_future()
            reference.set_result(item)
            yield reference

    async def completed(self) -> None:
        """The call has ended."""
        await self._ended.wait()


class _Method:
    def __init__(self, actor: SimulatedActor, name: str) -> None:
        self._actor, self._name = actor, name

    def options(
        self,
        *,
        num_returns: int | str = 1,
        _generator_backpressure_num_objects: int = 0,
    ) -> "_Called":
        return _Called(
            self._actor, self._name, num_returns, _generator_backpressure_num_objects
        )

    @property
    def remote(self) -> Callable[..., Any]:
        return self.options().remote


class _Called:
    def __init__(
        self, actor: SimulatedActor, name: str, num_returns: int | str, room: int
    ) -> None:
        self._actor, self._name, self._num_returns, self._room = (
            actor,
            name,
            num_returns,
            room,
        )

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self._num_returns, str):
            return self._actor.stream(self._name, *args, room=self._room, **kwargs)
        references = self._actor.start(
            self._name, *args, num_returns=self._num_returns, **kwargs
        )
        return references[0] if self._num_returns == 1 else tuple(references)


async def _value(argument: Any) -> Any:
    return await argument if isinstance(argument, asyncio.Future) else argument
