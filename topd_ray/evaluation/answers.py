r"""Find the answer in \boxed{} in a response; compare two answers as mathematics."""

import logging
import multiprocessing
import re
import threading
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from topd_ray.errors import DeadlineError, TopdError

COMPARE_DEADLINE_S = 5.0
START_DEADLINE_S = 60.0
MEMORY_LIMIT_BYTES = 4 << 30
_INTEGER = re.compile(r"-?[0-9]+")
LONGEST_ANSWER = 200
"""Characters; a longer answer is only compared as text."""
_BRACES = re.compile(r"\\boxed\s*\{|\\[{}\\]|[{}]")
r"""A box, an escaped character (text, not structure), a brace."""

logger = logging.getLogger(__name__)


def extract_boxed(text: str) -> str | None:
    r"""Return the content of the last complete \boxed{...}; None without one.

    Inner braces are balanced; escaped braces are text.
    """
    open_braces: list[re.Match[str]] = []
    last: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        if match.group() in ("\\{", "\\}", "\\\\"):
            continue
        if match.group().endswith("{"):
            open_braces.append(match)
        elif open_braces:
            opened = open_braces.pop()
            if len(opened.group()) > 1 and (last is None or opened.end() > last[0]):
                last = opened.end(), match.start()
    return None if last is None else text[last[0] : last[1]].strip()


def is_right(response: str, answer: str | None) -> bool:
    r"""Return whether the last \boxed{...} of a response equals the answer.

    Nothing equals the answer None.
    """
    return answer is not None and same_answer(extract_boxed(response), answer)


def same_answer(predicted: str | None, truth: str) -> bool:
    """Return whether two answers are the same text or the same mathematics.

    math-verify decides what is the same mathematics; `predicted` None is never right.
    """
    if predicted is None:
        return False
    predicted = predicted.strip()
    truth = truth.strip()
    if predicted == truth:
        return True
    if not predicted or not truth or max(len(predicted), len(truth)) > LONGEST_ANSWER:
        return False
    # math-verify says the same of two integers, and takes a process to say it.
    if _INTEGER.fullmatch(predicted) and _INTEGER.fullmatch(truth):
        return int(predicted) == int(truth)
    if _is_word(predicted) and _is_word(truth):  # as mathematics, "east" equals "seat"
        return predicted.casefold() == truth.casefold()
    return _comparer.same(predicted, truth)


def _is_word(text: str) -> bool:
    return text.isalpha() and len(text) > 2


class _Comparer:
    r"""Runs math-verify in a separate process that can be killed.

    Some answers (`9^{9^9}`, `99999999!`) keep sympy busy for ever, inside C code that
    no signal interrupts and that aborts the process when memory runs out. Only a kill
    helps. A comparison that had to be killed is no match, and is logged.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def same(self, predicted: str, truth: str) -> bool:
        # The pipe carries one pair and one verdict at a time.
        with self._lock:
            pipe = self._started()
            try:
                pipe.send((predicted, truth))
                if pipe.poll(COMPARE_DEADLINE_S):
                    return bool(pipe.recv())
                cause = f"no verdict within {COMPARE_DEADLINE_S:g} s"
            except (EOFError, OSError):
                cause = "the comparing process died"
            logger.warning(
                "answer %.80r against %.80r: %s; no match", predicted, truth, cause
            )
            self._stop()
            return False

    def _started(self) -> Connection:
        if (
            self._pipe is not None
            and self._process is not None
            and self._process.is_alive()
        ):
            return self._pipe
        self._stop()
        # Forking a process that has threads (an engine's, Ray's) may hang.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_compare_for_ever, args=(theirs,), daemon=True
        )
        self._process.start()
        theirs.close()
        if not self._pipe.poll(START_DEADLINE_S):
            self._stop()
            raise DeadlineError(
                f"math-verify's process did not start in {START_DEADLINE_S:g} s"
            )
        try:
            self._pipe.recv()
        except EOFError:
            self._stop()
            raise TopdError(
                "math-verify's process died while it started; see stderr"
            ) from None
        return self._pipe

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = None
        self._pipe = None


def _compare_for_ever(pipe: Connection) -> None:
    """Answer pairs with verdicts until the pipe closes: the comparing process."""
    import resource
    import signal

    # Imported here, so that this process alone loads sympy.
    from math_verify import parse, verify

    # Ctrl-C reaches the whole process group; the process that waits here handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Better that this process runs out of memory than the engine beside it.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    # It would warn at every comparison that its timeouts are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    pipe.send("ready")
    while True:
        try:
            predicted, truth = pipe.recv()
        except EOFError:
            return
        # Without timeouts (theirs are signals, for main threads only) both functions
        # turn every exception of the parser or of sympy into "no match" by themselves.
        parsed = [
            parse(f"${answer}$", parsing_timeout=None) for answer in (truth, predicted)
        ]
        pipe.send(verify(parsed[0], parsed[1], timeout_seconds=None))


_comparer = _Comparer()
