"""The real `ray job submit`, against a real head node with its job server, on
loopback.
"""

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import pytest

from tests.runs import BIN, ON_TRANSFORMERS, ROOT, Run, Setting

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]
DEADLINE_S = 180


@pytest.fixture(scope="module")
def short_folder() -> Iterator[str]:
    """Ray's sockets lie below it, and a socket's path has at most 107 characters."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def job_server(short_folder: str) -> Iterator[str]:
    """A head node with a job server; its address."""
    dashboard, agent, gcs = _free_port(), _free_port(), _free_port()
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PATH": _path()}
    start = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--port={gcs}",
        # The default port may be taken by another Ray on this machine.
        f"--dashboard-agent-listen-port={agent}",
        "--num-cpus=2",  # Ray starts a process for each before it is asked to
        "--object-store-memory=100000000",
        f"--temp-dir={short_folder}",
    ]
    head = subprocess.Popen(
        start, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        server = f"http://127.0.0.1:{dashboard}"
        _wait_for(server, head)
        yield server
    finally:
        head.terminate()
        head.wait(30)


def test_a_submitted_job_trains_and_leaves_its_run_folder(
    setting: Setting, job_server: str
) -> None:
    done = subprocess.run(
        [
            ROOT / "cluster" / "submit.sh",
            setting.file,
            "run.name=submitted",
            "run.steps=2",
            *ON_TRANSFORMERS,
        ],
        cwd=ROOT,
        env={**os.environ, "RAY_API_SERVER_ADDRESS": job_server, "PATH": _path()},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    run: Run = setting.run("submitted")
    assert run.summary["steps"] == 2
    assert [line["step"] for line in run.metrics] == [1, 2]


def test_a_job_with_a_mistake_in_its_config_fails_with_the_message(
    setting: Setting, job_server: str
) -> None:
    done = subprocess.run(
        [ROOT / "cluster" / "submit.sh", setting.file, "run.stepz=2"],
        cwd=ROOT,
        env={**os.environ, "RAY_API_SERVER_ADDRESS": job_server, "PATH": _path()},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    assert "run.stepz: unknown key" in done.stdout + done.stderr


def _path() -> str:
    """Jobs start `python` from the head node's PATH."""
    return f"{BIN}:{os.environ['PATH']}"


def _free_port() -> int:
    """A port that nothing listens on, below those that the system gives to connections:
    Ray binds it seconds later.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _wait_for(server: str, process: "subprocess.Popen[bytes]") -> None:
    """Until the job server answers: it opens its port sooner."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ray start ended with {process.returncode}"
        try:
            with urlopen(f"{server}/api/version", timeout=10):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"no job server at {server} within {DEADLINE_S} s")
