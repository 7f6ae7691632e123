"""`topd watch`: the page of a run, served while the run goes on."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import uvicorn

from topd_ray.errors import UserError, first_line
from topd_ray.page.live import (
    POLL_S,
    LivePage,
    allowed_hosts,
    is_loopback,
    live_app,
)
from topd_ray.records.open_run import open_run
from topd_ray.records.run_folder import RunFolder

_GRACE_S = 1
"""Seconds that open streams of events get when the server ends."""
_END_S = 10.0
_STDERR = 2
_LOOK_S = 0.2
"""Seconds between two looks for a folder that is not there yet."""


def watch(run: Path, *, host: str, port: int, until_stdin_ends: bool = False) -> None:
    """Serve a run's page until Ctrl-C.

    With `until_stdin_ends` the run may not have begun; the server waits for its folder
    and ends with the process that holds the other end of stdin, even if that is killed.
    Raises UserError where there is no run folder, or the address cannot be bound.
    """
    ended = threading.Event()
    if until_stdin_ends:
        threading.Thread(target=_wait_for_stdin, args=(ended,), daemon=True).start()
        # Takes seconds, in which the run's process loads the same.
        import_module("transformers.models.auto.tokenization_auto")
        while not RunFolder(run).config.is_file():
            if ended.wait(_LOOK_S):
                return
    open_run(run)
    with _bound(host, port) as listening:
        bound_port = listening.getsockname()[1]
        live = LivePage(run.absolute())
        live.values()  # loads the tokenizer, so that the first reader need not wait
        app = live_app(live, hosts=allowed_hosts(host, bound_port))
        shown = f"[{host}]" if ":" in host else host
        print(f"watch {run} at http://{shown}:{bound_port}/", flush=True)
        if not is_loopback(host):
            print(f"{host} is no loopback address: others may read it", flush=True)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        if until_stdin_ends:
            threading.Thread(target=_stop, args=(server, ended), daemon=True).start()
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()  # who opens the address as soon as it is printed waits
    except OSError as error:
        listening.close()
        raise UserError(
            f"--host {host} --port {port}: cannot be bound ({first_line(error)});"
            " --port 0 takes a free one"
        ) from None
    return listening


def _wait_for_stdin(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def _stop(server: uvicorn.Server, ended: threading.Event) -> None:
    ended.wait()
    # The summary is still to be noticed and sent.
    time.sleep(2 * POLL_S)
    server.should_exit = True


@contextmanager
def watching(run: Path) -> Iterator[None]:
    """Serve a run's page from another process while the block runs.

    A thread would take time of the driver's process, which waits for its actors.
    """
    command = ["-m", "topd_ray", "watch", str(run), "--port", "0", "--until-stdin-ends"]
    # On stderr, because a program may read the run's lines on stdout.
    process = subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=_STDERR
    )
    try:
        yield
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


__all__ = ["watch", "watching"]
