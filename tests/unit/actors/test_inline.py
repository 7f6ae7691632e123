import asyncio
from collections.abc import Iterator

import pytest

from topd_ray.actors.inline import InlineProcess
from topd_ray.errors import TopdError


class Worker:
    """Does things and remembers their order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def pair(self, value: int) -> tuple[int, str]:
        self.done.append(f"pair {value}")
        return value, f"receipt of {value}"

    def count(self, most: int, fail_at: int | None = None) -> Iterator[int]:
        for number in range(most):
            if number == fail_at:
                raise TopdError("burst")
            self.done.append(f"count {number}")
            yield number

    def close(self) -> None:
        self.done.append("close")


def test_references_of_one_call_are_the_arguments_of_the_next() -> None:
    async def go() -> tuple[int, str, str]:
        process = InlineProcess(Worker())
        payload, receipt = process.call("pair", 3, num_returns=2)
        again, second = process.call("pair", payload, num_returns=2)
        return await again, await receipt, await second

    assert asyncio.run(go()) == (3, "receipt of 3", "receipt of 3")


def test_calls_are_done_in_the_order_of_submission_and_streams_to_their_end() -> None:
    async def go() -> tuple[list[int], list[str]]:
        worker = Worker()
        process = InlineProcess(worker)
        stream = process.stream("count", 2)
        process.call("pair", 7)
        numbers = [await reference async for reference in stream]
        await stream.completed()
        process.kill()
        return numbers, worker.done

    assert asyncio.run(go()) == ([0, 1], ["count 0", "count 1", "pair 7", "close"])


def test_a_stream_waits_for_its_next_item_and_a_call_beside_it_comes_first() -> None:
    async def go() -> list[str]:
        worker = Worker()
        process = InlineProcess(worker)
        stream = aiter(process.stream("count", 3))
        await anext(stream)
        assert await process.interject("pair", 7) == (7, "receipt of 7")
        await anext(stream)
        process.call("pair", 8)
        assert await (await anext(stream)) == 2
        return worker.done

    assert asyncio.run(go()) == [
        "count 0",
        "pair 7",
        "count 1",
        "count 2",
        "pair 8",
    ]


def test_an_error_surfaces_where_its_reference_is_awaited() -> None:
    async def go() -> None:
        process = InlineProcess(Worker())
        first, second = process.call("pair", num_returns=2)
        with pytest.raises(TypeError, match="value"):
            await first
        with pytest.raises(TypeError, match="value"):
            await second
        stream = process.stream("count", 3, 1)
        references = [reference async for reference in stream]
        assert await references[0] == 0
        with pytest.raises(TopdError, match="burst"):
            await references[1]
        with pytest.raises(TopdError, match="burst"):
            await stream.completed()

    asyncio.run(go())
