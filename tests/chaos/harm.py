"""Start commands and send signals to their processes."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.runs import BIN, ROOT, Run, losses, topd_process

DEADLINE_S = 240
Started = subprocess.Popen[str]


@contextmanager
def started(*args: str | Path) -> Iterator[Started]:
    """Start `topd …` in a new process group, and end all of it with the block."""
    process = subprocess.Popen(
        [BIN / "topd", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_all(process.pid)
        process.wait(DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()


def kill_all(parent: int) -> None:
    """Kill a process and all below it at once, as a machine that goes away does."""
    if psutil.pid_exists(parent):
        for child in [*below(parent), psutil.Process(parent)]:
            send(child, signal.SIGKILL)


def below(parent: int) -> list[psutil.Process]:
    return psutil.Process(parent).children(recursive=True)


def send(process: psutil.Process, what: signal.Signals) -> None:
    try:
        process.send_signal(what)
    except psutil.NoSuchProcess:
        return


def wait_until(
    ready: Callable[[], bool], process: Started, *, every_s: float = 0.02
) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        assert process.poll() is None, f"ended too early: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(every_s)


def workers(process: Started, kind: str) -> list[psutil.Process]:
    """Return the processes of the living actors of a class."""
    return [
        child
        for child in below(process.pid)
        if command(child).startswith(f"ray::{kind}")
    ]


def strike(process: Started, kind: str, what: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal to the one actor of a class; return its process id."""
    (victim,) = workers(process, kind)
    send(victim, what)
    return victim.pid


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()  # Ray pads a title with blanks
    except psutil.NoSuchProcess:  # ended since it was listed
        return ""


def has_steps(run: Run, count: int) -> Callable[[], bool]:
    return lambda: num_steps(run) >= count


def num_steps(run: Run) -> int:
    """Return the number of steps that are in the metrics."""
    metrics = run.path / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


def ended(process: Started) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    return output


def resume(run: Run) -> None:
    done = topd_process("resume", run.path)
    assert done.code == 0, done.output


def happened(run: Run) -> list[str]:
    return [event["event"] for event in run.events]


def assert_same(run: Run, whole: Run) -> None:
    """Compare losses, accuracy, counts and the bytes of the exported weights."""
    assert losses(run) == losses(whole)
    counted: tuple[str, ...] = (
        "accuracy_before",
        "accuracy_after",
        "num_rollouts",
        "num_divergent",
    )
    assert [run.summary[key] for key in counted] == [
        whole.summary[key] for key in counted
    ]
    one, other = (
        path / "export" / "model.safetensors" for path in (run.path, whole.path)
    )
    assert one.read_bytes() == other.read_bytes()
