"""An engine that is advanced in steps, asked by several threads at once.

One thread of its own opens the engine, steps it and runs whatever else touches it, in
the order of asking. (Not whoever holds a lock: CUDA's current device and OpenMP's pool
belong to a thread, a lock in a loop starves the other caller, and here the engine goes
on while a caller computes.)
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

from topd_ray.errors import TopdError

CLOSED = "the engine is closed"


class Steps(Protocol):
    """What is asked of the engine; requests have string ids."""

    def step(self) -> Sequence[Any]:
        """Advance all requests; outputs of those that have finished, with their
        `request_id`.
        """
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget requests, finished ones included."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


Job = Callable[[Any], Any]
Add = Callable[[Any], str]
"""Adds one request to the engine; returns the id under which its output will come."""


class Call:
    """One caller's requests: their outputs, and why there will be no more of them."""

    def __init__(self, finish: Callable[[Any, Any], Any]) -> None:
        self._finish = finish
        self._outputs: SimpleQueue[Any] = SimpleQueue()
        self._error: TopdError | None = None
        self.waiting: set[str] = set()

    def next(self) -> Any:
        """The next output, as soon as there is one. Raises TopdError once the call has
        ended.
        """
        output = None if self._error else self._outputs.get()
        if self._error is not None:
            raise self._error
        return output

    def hand_over(self, engine: Any, output: Any) -> None:
        """An output for the caller; one that cannot be finished ends this call, and no
        other.
        """
        try:
            self.waiting.remove(output.request_id)
            self._outputs.put(self._finish(engine, output))
        except (
            Exception
        ) as error:  # the caller's to handle: the engine serves others too
            self.end(f"{type(error).__name__}: {error}")

    def end(self, reason: str) -> None:
        """Make this call's next wait, and one under way, raise."""
        self._error = TopdError(reason)
        self._outputs.put(None)


class Stepper:
    """Runs jobs between steps and hands outputs to the calls that asked for them."""

    def __init__(self, open_engine: Callable[[], Steps], *, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Job, Future[Any]]] = SimpleQueue()
        # Reentrant: a forgotten iterator ends in whatever thread the garbage collector
        # runs in.
        self._lock = threading.RLock()
        self._ended: str | None = None
        self._calls: set[Call] = (
            set()
        )  # the engine thread's alone, like all of the engine
        started: Future[None] = Future()
        arguments = (open_engine, started)
        self._thread = threading.Thread(
            target=self._run, args=arguments, name=name, daemon=True
        )
        self._thread.start()
        started.result()

    def do(self, job: Job) -> Any:
        """What `job(engine)` returns or raises; it runs between two steps."""
        return self._ask(job).result()

    def begin(self, adds: Sequence[Add], finish: Callable[[Any, Any], Any]) -> Call:
        """Add requests, all or none; `finish(engine, output)` is what the call will
        give.
        """
        call = Call(finish)

        def add_all(engine: Steps) -> None:
            self._calls.add(call)
            try:
                for add in adds:
                    call.waiting.add(add(engine))
            except BaseException:
                self._forget(engine, call)
                raise

        self.do(add_all)
        return call

    def finish(self, call: Call) -> None:
        """The caller wants no more of this call: abort what is left of it. Does not
        wait.
        """
        try:
            self._ask(lambda engine: self._forget(engine, call))
        except TopdError:  # the engine is closed, and the call with it
            return

    def end_all(self, engine: Steps, reason: str) -> None:
        """Within a job: end every call that its caller has not seen to the end."""
        for call in list(self._calls):
            call.end(reason)
            self._forget(engine, call)

    def close(self) -> None:
        """End all calls, free the engine and return; safe to call twice."""
        with self._lock:
            if self._ended is None:
                self._ended = CLOSED
                self._jobs.put((lambda _: None, Future()))  # wake the thread
        self._thread.join()

    def _ask(self, job: Job) -> Future[Any]:
        answer: Future[Any] = Future()
        with self._lock:
            if self._ended is not None:
                raise TopdError(self._ended)
            self._jobs.put((job, answer))
        return answer

    def _forget(self, engine: Steps, call: Call) -> None:
        self._calls.discard(call)
        if call.waiting:
            engine.abort(sorted(call.waiting))
        call.waiting = set()

    def _run(self, open_engine: Callable[[], Steps], started: "Future[None]") -> None:
        try:
            engine = open_engine()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while self._ended is None:
                self._run_jobs(engine)
                self._step(engine)
        except (
            BaseException
        ) as error:  # a step failed: what the engine holds is unknown
            self._shut(engine, f"the engine died: {type(error).__name__}: {error}")
        else:
            self._shut(engine, CLOSED)

    def _run_jobs(self, engine: Steps) -> None:
        """All that were asked for; with nothing to step, wait for one."""
        while not (self._jobs.empty() and any(call.waiting for call in self._calls)):
            job, answer = self._jobs.get()
            try:
                answer.set_result(job(engine))
            except BaseException as error:
                answer.set_exception(error)
            if self._ended is not None:
                return

    def _step(self, engine: Steps) -> None:
        if self._ended is not None:
            return
        owner = {
            request_id: call for call in self._calls for request_id in call.waiting
        }
        for output in engine.step():
            if output.request_id in owner:
                owner[output.request_id].hand_over(engine, output)

    def _shut(self, engine: Steps, reason: str) -> None:
        with self._lock:
            self._ended = reason
        for call in list(self._calls):
            call.end(reason)
        self._calls.clear()
        while not self._jobs.empty():
            _, answer = self._jobs.get()
            if not answer.done():
                answer.set_exception(TopdError(reason))
        engine.close()


__all__ = ["CLOSED", "Add", "Call", "Stepper", "Steps"]
