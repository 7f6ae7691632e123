"""Many callers, one engine, one thread that steps it."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from topd_ray.engines.stepping import EngineCall, Stepper
from topd_ray.errors import EngineDiedError, TopdError

TIMEOUT_S = 60
"""A wait that never ends fails here."""


@dataclass(frozen=True)
class Output:
    request_id: str


class Countdown:
    """Finishes each request after as many steps as its id says before the dash."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.aborted: list[str] = []
        self.threads: Counter[int] = Counter()
        self.closed = 0
        self.error: Exception | None = None

    def add(self, request_id: str) -> str:
        self.threads[threading.get_ident()] += 1
        self.left[request_id] = int(request_id.split("-")[0])
        return request_id

    def step(self) -> list[Output]:
        self.threads[threading.get_ident()] += 1
        if self.error is not None:
            raise self.error
        self.left = {key: steps - 1 for key, steps in self.left.items()}
        done = [key for key, steps in self.left.items() if steps <= 0]
        for key in done:
            del self.left[key]
        return [Output(key) for key in done]

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids
        for one in request_ids:
            self.left.pop(one, None)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def engine() -> Countdown:
    return Countdown()


@pytest.fixture
def stepper(engine: Countdown) -> Iterator[Stepper]:
    opened = Stepper(lambda: engine, name="test")
    yield opened
    opened.close()


def begin(stepper: Stepper, *ids: str) -> EngineCall:
    adds = [lambda engine, one=one: engine.add(one) for one in ids]
    return stepper.begin(adds, lambda _, output: output.request_id)


def soon(work: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(TIMEOUT_S)


def test_each_call_gets_its_own_outputs_in_the_order_they_finish(stepper, engine):
    with ThreadPoolExecutor(8) as pool:

        def ask(caller: int) -> list[str]:
            call = begin(stepper, *(f"{steps}-{caller}" for steps in (9, 1, 5)))
            found = [call.next() for _ in range(3)]
            stepper.finish(call)
            return found

        answers = [
            one.result(TIMEOUT_S) for one in [pool.submit(ask, i) for i in range(40)]
        ]
    assert answers == [[f"{steps}-{i}" for steps in (1, 5, 9)] for i in range(40)]
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


def test_what_is_no_longer_wanted_is_aborted_and_nothing_else(stepper, engine):
    call = begin(stepper, "1-a", "1000000000-b", "1000000000-c")
    other = begin(stepper, "3-d")
    assert soon(call.next) == "1-a"
    stepper.finish(call)
    assert soon(other.next) == "3-d"
    stepper.do(lambda _: None)
    assert engine.aborted == ["1000000000-b", "1000000000-c"]


def test_requests_are_added_all_or_none(stepper, engine):
    with pytest.raises(ValueError, match="bad"):
        begin(stepper, "5-a", "5-b", "bad")
    assert engine.aborted == ["5-a", "5-b"]
    assert soon(begin(stepper, "1-c").next) == "1-c"


def test_an_output_that_cannot_be_finished_ends_its_call_alone(stepper):
    other = begin(stepper, "50-a")
    call = stepper.begin([lambda engine: engine.add("1-b")], lambda *_: 1 // 0)
    with pytest.raises(TopdError, match="ZeroDivisionError"):
        soon(call.next)
    assert soon(other.next) == "50-a"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("out of range"), TopdError),
        (RuntimeError("CUDA error: unknown error"), EngineDiedError),
    ],
)
def test_a_step_that_fails_ends_all_calls_and_refuses_more(
    stepper, engine, error: Exception, kind: type[TopdError]
):
    calls = [begin(stepper, "1000000000-a"), begin(stepper, "1000000000-b")]
    engine.error = error
    reason = f"the engine died: {type(error).__name__}: {error}"
    for call in calls:
        with pytest.raises(TopdError, match=reason) as caught:
            soon(call.next)
        assert type(caught.value) is kind
    with pytest.raises(kind, match="the engine died"):
        soon(lambda: begin(stepper, "1-c"))
    stepper.finish(calls[0])
    assert engine.closed == 1


def test_end_all_ends_a_call_that_has_outputs_nobody_has_looked_at(stepper):
    call = begin(stepper, "1-a", "1-b", "2-c")
    assert soon(call.next) == "1-a"
    stepper.do(lambda engine: stepper.end_all(engine, "new weights ended this call"))
    with pytest.raises(TopdError, match="new weights"):
        soon(call.next)


def test_closing_ends_a_wait_under_way(stepper, engine):
    call = begin(stepper, "1000000000-a")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call.next)
        stepper.close()
        with pytest.raises(TopdError, match="closed"):
            waiting.result(TIMEOUT_S)
    stepper.close()
    assert engine.closed == 1
    with pytest.raises(TopdError, match="closed"):
        soon(lambda: begin(stepper, "1-b"))


def test_an_engine_that_does_not_open_raises_where_it_was_asked_for():
    def fail() -> Countdown:
        raise OSError("no such folder")

    with pytest.raises(OSError, match="no such folder"):
        Stepper(fail, name="test")


def test_an_idle_engine_is_not_stepped(stepper, engine):
    soon(begin(stepper, "1-a").next)
    before = sum(engine.threads.values())
    for _ in range(100):
        stepper.do(lambda _: None)
    assert sum(engine.threads.values()) == before
