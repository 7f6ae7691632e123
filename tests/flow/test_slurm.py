"""cluster/slurm.sbatch with stubs of Slurm and Ray, and the real `topd`."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.runs import BIN, INLINE, ROOT, Run, Setting

pytestmark = pytest.mark.engines
DEADLINE_S = 300
STUBS = {
    # Options off, then the command, as on the node that Slurm would choose.
    "srun": """
while [ "${1#-}" != "$1" ]; do [ "$1" = -w ] && shift; shift; done
echo "$SRUN_CPUS_PER_TASK: $*" >>"$CALLS"
[ "$1" = hostname ] && { echo "127.0.0.1 10.0.0.1"; exit; }
exec "$@"
""",
    "scontrol": """
echo "scontrol $*" >>"$CALLS"
echo node-1
""",
    "ray": """
[ "$1" = status ] && { printf 'Node status\\nActive:\\n 1 node_a\\nPending:\\n'; exit; }
[ -z "$RAY_FAILS" ] || exit 1
trap 'echo "ray ended" >>"$CALLS"; exit' TERM
while :; do sleep 0.1; done
""",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the stubs where the script looks for them."""
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "topd").symlink_to(BIN / "topd")
    for name, body in STUBS.items():
        path = (bin_folder if name == "ray" else tmp_path) / name
        path.write_text(f"#!/usr/bin/env bash\n{body}")
        path.chmod(0o755)
    return tmp_path


def start(checkout: Path, *args: str | Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", ROOT / "cluster" / "slurm.sbatch", *map(str, args)],
        cwd=checkout,
        env={
            **os.environ,
            "PATH": f"{checkout}:{os.environ['PATH']}",
            "CALLS": str(checkout / "calls"),
            "SLURM_CPUS_PER_TASK": "32",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node-1",
            "SLURM_NNODES": "1",
            "RAY_FAILS": "",
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=DEADLINE_S)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_a_step(run: Run, process: subprocess.Popen[str]) -> None:
    until_s = time.monotonic() + DEADLINE_S
    metrics = run.path / "metrics.jsonl"
    while not metrics.is_file() or not metrics.read_text():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until_s
        time.sleep(0.05)


def test_the_signal_of_the_time_limit_reaches_the_run_and_the_job_queues_again(
    checkout: Path, setting: Setting
) -> None:
    run = setting.run("slurm")
    args = (setting.file, "run.name=slurm", "run.steps=400", *INLINE)
    process = start(checkout, *args)
    try:
        wait_for_a_step(run, process)
        process.send_signal(signal.SIGUSR1)
    finally:
        output = ended(process)
    assert process.returncode == 0, output
    steps = len(run.metrics)
    assert 1 <= steps < 400
    latest = (run.path / "checkpoints" / "latest").read_text()
    assert latest == f"step_{steps}\n"
    calls = (checkout / "calls").read_text()
    assert "scontrol requeue 7" in calls
    assert "32: .venv/bin/ray start --head --node-ip-address=127.0.0.1" in calls
    assert calls.endswith("ray ended\n")
    assert not list(checkout.glob(".ray-token-*"))

    # Queued again, the same job goes on; preempted, it is Slurm that queues it.
    (checkout / "calls").unlink()
    process = start(checkout, *args)
    try:
        until_s = time.monotonic() + DEADLINE_S
        while len(run.metrics) == steps:
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    finally:
        output = ended(process)
    assert process.returncode == 0, output
    assert [line["step"] for line in run.metrics] == list(
        range(1, len(run.metrics) + 1)
    )
    assert "requeue" not in (checkout / "calls").read_text()


def test_a_ray_that_does_not_start_ends_the_job_and_says_so(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "ray").write_text("#!/bin/sh\nexit 1\n")
    process = start(checkout, "config.yaml")
    output = ended(process)
    assert process.returncode == 1
    assert "ray start has ended" in output


def test_nodes_that_do_not_join_end_the_job_at_its_deadline(checkout: Path) -> None:
    process = start(checkout, "config.yaml", SLURM_NNODES="2", START_DEADLINE_S="2")
    output = ended(process)
    assert process.returncode == 1
    assert "1 of 2 nodes have joined after 2 s" in output
    assert "ray ended" in (checkout / "calls").read_text()
