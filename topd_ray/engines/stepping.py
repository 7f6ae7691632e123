"""One engine that is advanced in steps, shared by several threads.

A thread opens the engine, steps it and runs every job that touches it, in the order of
submission. A lock around the engine would not do: CUDA's current device and OpenMP's
pool belong to a thread; a lock in a loop starves the other callers; and with a thread
the engine continues while a caller computes.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

from topd_ray.engines.fatal import as_topd_error
from topd_ray.errors import TopdError

CLOSED = "the engine is closed"


class Steps(Protocol):
    """An engine that is advanced in steps; its requests have string ids."""

    def step(self) -> Sequence[Any]:
        """Advance all requests; return the outputs of those that have finished.

        Each output has a `request_id`.
        """
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests, finished ones included."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


Job = Callable[[Any], Any]
"""Runs with the engine, between two steps."""
Add = Callable[[Any], str]
"""Adds one request to the engine; returns the request's id."""


class EngineCall:
    """One caller's requests: their outputs, and the error that ended them."""

    def __init__(self, finish: Callable[[Any, Any], Any]) -> None:
        self._finish = finish
        self._outputs: SimpleQueue[Any] = SimpleQueue()
        self._error: TopdError | None = None
        self.waiting: set[str] = set()

    def next(self) -> Any:
        """Return the next output; wait for it.

        Raises:
            TopdError: The call has ended.
        """
        output = None if self._error else self._outputs.get()
        if self._error is not None:
            raise self._error
        return output

    def hand_over(self, engine: Any, output: Any) -> None:
        """Give an output to the caller; a failure to do so ends this call alone."""
        try:
            self.waiting.remove(output.request_id)
            self._outputs.put(self._finish(engine, output))
        except Exception as error:
            # The caller gets the error: the engine's thread serves other calls too.
            self.end(as_topd_error(error))

    def end(self, error: TopdError) -> None:
        """Make the present and every later `next` raise the error."""
        self._error = error
        self._outputs.put(None)


class Stepper:
    """Runs jobs between steps and hands each output to the call of its request."""

    def __init__(self, open_engine: Callable[[], Steps], *, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Job, Future[Any]]] = SimpleQueue()
        # Reentrant: the garbage collector may end an abandoned iterator in any thread,
        # also in one that holds the lock.
        self._lock = threading.RLock()
        self._ended: TopdError | None = None
        # like the engine, touched by the engine's thread alone
        self._calls: set[EngineCall] = set()
        started: Future[None] = Future()
        arguments = (open_engine, started)
        self._thread = threading.Thread(
            target=self._run, args=arguments, name=name, daemon=True
        )
        self._thread.start()
        started.result()

    def do(self, job: Job) -> Any:
        """Run `job(engine)` between two steps; return or raise what it does."""
        return self._submit(job).result()

    def begin(
        self, adds: Sequence[Add], finish: Callable[[Any, Any], Any]
    ) -> EngineCall:
        """Add requests, all or none, and return the call that yields their results.

        Args:
            adds: One function for each request.
            finish: Makes the caller's result from the engine and an output.
        """
        call = EngineCall(finish)

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

    def finish(self, call: EngineCall) -> None:
        """Abort the call's remaining requests; does not wait for it."""
        try:
            self._submit(lambda engine: self._forget(engine, call))
        except TopdError:  # the engine is closed, which has ended the call
            return

    def end_all(self, engine: Steps, reason: str) -> None:
        """End every call that is not complete; only a job may call it."""
        for call in list(self._calls):
            call.end(TopdError(reason))
            self._forget(engine, call)

    def close(self) -> None:
        """End all calls, free the engine and return; safe to call twice."""
        with self._lock:
            if self._ended is None:
                self._ended = TopdError(CLOSED)
                self._jobs.put((lambda _: None, Future()))  # wake the thread
        self._thread.join()

    def _submit(self, job: Job) -> Future[Any]:
        answer: Future[Any] = Future()
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._jobs.put((job, answer))
        return answer

    def _forget(self, engine: Steps, call: EngineCall) -> None:
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
        except BaseException as error:
            # A step failed, so the state of the engine is unknown.
            self._shut(engine, as_topd_error(error, where="the engine died: "))
        else:
            self._shut(engine, TopdError(CLOSED))

    def _run_jobs(self, engine: Steps) -> None:
        """Run all submitted jobs; without a request to step, wait for a job."""
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

    def _shut(self, engine: Steps, error: TopdError) -> None:
        with self._lock:
            self._ended = error
        for call in list(self._calls):
            call.end(error)
        self._calls.clear()
        while not self._jobs.empty():
            _, answer = self._jobs.get()
            if not answer.done():
                answer.set_exception(error)
        engine.close()


__all__ = ["CLOSED", "Add", "EngineCall", "Stepper", "Steps"]
