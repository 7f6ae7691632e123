"""An engine that can compute no more is replaced, though its process lives."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray

from tests.runs import INLINE, Setting, losses
from topd_ray.actors.calls import Calls
from topd_ray.actors.fleet import RayProcess
from topd_ray.actors.handles import Handle
from topd_ray.actors.replacement import FailureBudget, Replacement
from topd_ray.actors.worker import Worker
from topd_ray.engines.hf import HfGeneration
from topd_ray.engines.hf_teacher import HfTeacher
from topd_ray.errors import TopdError
from topd_ray.learner.actor import LearnerActor

pytestmark = pytest.mark.engines
ASSERT = "CUDA error: device-side assert triggered"


class Broken(Worker):
    """Fails as a GPU does, and lives on; its successor works."""

    def __init__(self, config: Path, *, log: Path) -> None:
        super().__init__(log)
        self._fails = not config.exists()
        config.touch()

    def score(self) -> str:
        if self._fails:
            raise RuntimeError(ASSERT)
        return "scored"


def test_an_actor_that_meets_a_cuda_error_is_ended_and_replaced(
    cluster_address: str, tmp_path: Path
) -> None:
    log = tmp_path / "teacher[0].log"
    noted = list[str]()
    started = list[RayProcess]()

    def start() -> RayProcess:
        options = {"num_cpus": 0}
        started.append(RayProcess(Broken, options, tmp_path / "once", log=log))
        return started[-1]

    async def scored() -> Any:
        calls = Calls(start_deadline_s=240.0, call_deadline_s=60.0)
        replacement = Replacement(
            FailureBudget(1, window_steps=9), lambda _, error: noted.append(str(error))
        )
        handle = Handle("teacher[0]", start, calls, replacement)
        await handle.ready()
        (answer,) = await handle._call("score")
        return answer

    ray.init(address=cluster_address, log_to_driver=False)
    try:
        assert asyncio.run(scored()) == "scored"
        with pytest.raises(ray.exceptions.RayActorError):  # it does not live on
            ray.get(started[0].call("clock")[0], timeout=60)
    finally:
        ray.shutdown()
    (reason,) = noted
    assert f"teacher[0] died in score: RuntimeError: {ASSERT}" in reason
    assert "in score" in log.read_text()  # the stack


def once(method: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return the method, failing in its third call."""
    calls = 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return method(*arguments, **named)

    return failing


def test_a_run_goes_on_behind_cuda_errors_of_every_engine(setting: Setting) -> None:
    whole = setting.train("unbroken", *INLINE)
    breaks = [
        (HfTeacher, "hidden_states", RuntimeError(ASSERT)),
        (HfGeneration, "load_weights", RuntimeError("CUDA out of memory.")),
        (LearnerActor, "accumulate", RuntimeError("NCCL error: remote process exited")),
    ]
    patches = [
        mock.patch.object(kind, name, once(getattr(kind, name), error))
        for kind, name, error in breaks
    ]
    with patches[0], patches[1], patches[2]:
        run = setting.train("broken", *INLINE)
    assert losses(run) == losses(whole)
    events = {event["event"]: event for event in run.events}
    errors = [e["error"] for e in run.events if e["event"] == "replaced"]
    assert any(ASSERT in error for error in errors)
    assert any("CUDA out of memory." in error for error in errors)
    assert "NCCL error" in str(events["went_back"])
    assert run.summary["num_failures"] == len(breaks)


def test_an_ordinary_error_ends_the_run_as_before(setting: Setting) -> None:
    bug = once(HfTeacher.hidden_states, TopdError("hidden width 32, head width 64"))
    with (
        mock.patch.object(HfTeacher, "hidden_states", bug),
        pytest.raises(AssertionError, match="hidden width 32"),
    ):
        setting.train("mistaken", *INLINE)
