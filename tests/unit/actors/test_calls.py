"""Errors of Ray become errors of ours, each with the cause that Ray knows."""

import asyncio

import pytest
from ray.exceptions import RayActorError

from topd_ray.actors.calls import Calls
from topd_ray.errors import ActorDiedError, ActorOutOfMemoryError, TopdError

# As Ray 2.58 words them.
KILLED = (
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common"
    " causes include: (1) the process was killed by the OOM killer due to high memory"
    " usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly"
    " due to SIGSEGV or another unexpected error."
)
MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node"
    " was 22.9 GB / 24.0 GB (0.95), which exceeds the memory usage threshold of 0.95."
)


async def failing(report: str) -> None:
    raise RayActorError(error_msg=report)


def error_of(report: str) -> TopdError:
    calls = Calls(
        start_deadline_s=5.0, call_deadline_s=5.0, memory_hint=lambda _: "; lower it"
    )
    with pytest.raises(TopdError) as caught:
        asyncio.run(calls.start("teacher[0]", "ready", failing(report)))
    return caught.value


def test_a_process_that_died_of_an_unknown_cause_is_not_said_to_have_died_of_memory():
    error = error_of(KILLED)
    assert type(error) is ActorDiedError
    assert "teacher[0] died in ready" in str(error)


def test_a_process_killed_for_memory_comes_with_rays_figures_and_what_lowers_it():
    error = error_of(MEMORY)
    assert isinstance(error, ActorOutOfMemoryError)
    assert "22.9 GB / 24.0 GB" in str(error)
    assert str(error).endswith("; lower it")
