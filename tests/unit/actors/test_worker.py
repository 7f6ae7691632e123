"""What a worker says when its process can compute no more."""

from collections.abc import Iterator

import pytest

from topd_ray.actors.worker import Worker
from topd_ray.errors import EngineDiedError

BROKEN = RuntimeError("CUDA error: device-side assert triggered")
BUG = RuntimeError("index 3 is out of bounds")


class Broken(Worker):
    def score(self, error: Exception) -> None:
        raise error

    def roll_out(self, error: Exception) -> Iterator[int]:
        yield 1
        raise error


def test_a_fatal_error_is_logged_and_becomes_the_death_of_the_engine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(EngineDiedError, match=r"RuntimeError: CUDA error: device-side"):
        Broken(None).score(BROKEN)
    logged = capsys.readouterr().err
    assert "in score" in logged  # the stack, not the message alone
    assert str(BROKEN) in logged


def test_a_stream_keeps_what_it_has_yielded() -> None:
    stream = Broken(None).roll_out(BROKEN)
    assert next(stream) == 1
    with pytest.raises(EngineDiedError):
        next(stream)


def test_any_other_error_stays_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        Broken(None).score(BUG)
    with pytest.raises(RuntimeError, match="out of bounds"):
        list(Broken(None).roll_out(BUG))
