import asyncio

import pytest
from ray.exceptions import (
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from tests.unit.driver.fleet import config
from topd_ray.actors.calls import Calls
from topd_ray.errors import (
    ActorDiedError,
    ActorFailedError,
    ActorOutOfMemoryError,
    DeadlineError,
    EngineDiedError,
    LostObjectError,
    TopdError,
)
from topd_ray.inputs.memory import memory_hint
from topd_ray.simulate.clock import run_in_virtual_time

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
REPORT = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.1, ID: ab) was 22.81GB / 23.50GB (0.970), which exceeds
PID MEM(GB) COMMAND
71 11.90 ray::LearnerWorker.accumulate
"""


async def failing(error: Exception) -> None:
    raise error


def outcome(error: Exception) -> TopdError:
    calls = Calls.within(config().cluster, lambda actor: memory_hint(config(), actor))
    with pytest.raises(TopdError) as caught:
        asyncio.run(calls.call("learner[0]", "accumulate", failing(error)))
    assert (
        calls.last("learner[0]")[0]
        .split(" accumulate: ")[1]
        .startswith(type(caught.value).__name__)
    )
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RayActorError(), ActorDiedError),
        (ObjectLostError("ab" * 14, None, ""), LostObjectError),
        (RuntimeEnvSetupError("no such package"), ActorFailedError),
        (RayError("anything else of Ray's"), ActorFailedError),
    ],
)
def test_every_exception_of_ray_becomes_an_error_that_names_actor_and_call(
    error: Exception, kind: type[TopdError]
) -> None:
    found = outcome(error)
    assert type(found) is kind
    assert "learner[0]" in str(found)
    assert "accumulate" in str(found)


def test_an_actor_killed_for_memory_is_a_loss_that_says_who_held_what() -> None:
    found = outcome(OutOfMemoryError(REPORT))
    assert isinstance(found, ActorOutOfMemoryError)
    assert isinstance(found, ActorDiedError)  # it counts as a lost actor
    assert "22.81GB / 23.50GB" in str(found)
    assert "windows.token_budget" in str(found)


@pytest.mark.parametrize(
    ("message", "is_memory"),
    [("CUDA error: unknown error", False), ("CUDA out of memory.", True)],
)
def test_an_engine_that_died_is_a_loss_with_a_reason(
    message: str, is_memory: bool
) -> None:
    found = outcome(RayTaskError("accumulate", "stack", EngineDiedError(message)))
    assert isinstance(found, ActorDiedError)
    assert f"learner[0] died in accumulate: {message}" in str(found)
    assert "logs/learner[0].log" in str(found)
    assert ("windows.token_budget" in str(found)) is is_memory


def test_the_deadlines_are_those_of_the_config() -> None:
    cluster = config(call_deadline_s=7.0, failure_window_steps=5).cluster
    assert cluster.failure_window_steps == 5

    async def go() -> None:
        await Calls.within(cluster).call("teacher[0]", "score", asyncio.Event().wait())

    with pytest.raises(DeadlineError, match="for 7 s"):
        run_in_virtual_time(go())


def test_the_hint_names_the_estimate_of_topd_check() -> None:
    sized = config({"learner": {"model": "s", "size_b": 4.0}})
    assert "topd check estimates" in memory_hint(sized, "learner[1]")
    assert "rollout.engine.kv_cache_gib" in memory_hint(sized, "rollout[0]")


def test_a_cancelled_wait_ends_even_where_the_answer_comes_at_that_moment() -> None:
    """asyncio.wait_for of Python 3.11 returns the answer and forgets the cancel."""

    async def go() -> bool:
        calls = Calls(start_deadline_s=5.0, call_deadline_s=5.0)
        answer = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(calls.call("teacher[0]", "score", answer))
        await asyncio.sleep(0)
        answer.set_result(1)
        waiting.cancel()
        await asyncio.wait({waiting})
        return waiting.cancelled()

    assert run_in_virtual_time(go())


def test_a_call_that_is_not_answered_is_named_with_its_field() -> None:
    async def go() -> None:
        calls = Calls(start_deadline_s=9.0, call_deadline_s=5.0)
        await calls.call("teacher[0]", "score", asyncio.Event().wait())

    with pytest.raises(DeadlineError, match=r"score for 5 s \(cluster.call_deadline_s"):
        run_in_virtual_time(go())


def error_of(report: str) -> TopdError:
    calls = Calls(
        start_deadline_s=5.0, call_deadline_s=5.0, memory_hint=lambda _: "; lower it"
    )
    with pytest.raises(TopdError) as caught:
        asyncio.run(
            calls.start("teacher[0]", "ready", failing(RayActorError(error_msg=report)))
        )
    return caught.value


def test_a_death_of_unknown_cause_is_not_said_to_be_of_memory() -> None:
    error = error_of(KILLED)
    assert type(error) is ActorDiedError
    assert "teacher[0] died in ready" in str(error)


def test_a_death_of_memory_comes_with_figures_and_what_lowers_them() -> None:
    error = error_of(MEMORY)
    assert isinstance(error, ActorOutOfMemoryError)
    assert "22.9 GB / 24.0 GB" in str(error)
    assert str(error).endswith("; lower it")
