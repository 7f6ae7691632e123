"""Checks that start CUDA: the probes of probes.py, side by side, with one deadline."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from topd_ray.commands.doctor.finding import Finding

_DEADLINE_S = 25.0
_WAYS_OUT = {
    "NCCL": "NCCL_DEBUG=INFO says why; NCCL_P2P_DISABLE=1 goes through the host",
    "Triton": "the compiler and Python.h (above); TORCH_LOGS=+inductor says more",
    "shared handles": "docker run --ipc=host; weights can travel without them",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One check, made by one or two processes that see one GPU each."""

    check: str
    kind: str
    """Key of the ways out."""
    commands: tuple[tuple[str, ...], ...]
    """Arguments of probes.py, a process each."""
    gpus: tuple[int, ...]
    """The GPU of each process."""


def plan_probes(count: int) -> list[list[Probe]]:
    """Return rounds of probes; those of a round run side by side.

    NCCL goes round the ring of GPUs: 0-1 and 2-3, then 1-2 and 3-0. The first round has
    the kernels too, which mostly wait for the compiler.
    """
    attention = Probe(
        check="Triton, attention", kind="Triton", commands=(("attention",),), gpus=(0,)
    )
    sharing = Probe(
        check="CUDA IPC", kind="shared handles", commands=(("sharing",),), gpus=(0,)
    )
    rounds = [[attention, sharing, *_pairs(0, count)], _pairs(1, count)]
    return [probes for probes in rounds if probes]


def _pairs(first: int, count: int) -> list[Probe]:
    """Return every second pair of neighbours, from the one that begins at `first`."""
    probes = []
    for a in range(first, count, 2):
        b = a + 1
        if b == count:
            # The ring closes in the round that leaves GPU 0 free.
            if first == 0 or count == 2:
                continue
            b = 0
        port = str(_free_port())
        probes.append(
            Probe(
                check=f"NCCL, GPU {a} and {b}",
                kind="NCCL",
                commands=(("nccl", "0", port), ("nccl", "1", port)),
                gpus=(a, b),
            )
        )
    return probes


def run_probes(
    probes: Sequence[Probe], *, deadline_s: float = _DEADLINE_S
) -> list[Finding]:
    """Run a round of probes. Each that is not done by the deadline fails."""
    until_s = time.monotonic() + deadline_s
    started = [
        [_start(*pair) for pair in zip(p.commands, p.gpus, strict=True)] for p in probes
    ]
    return [
        judge(probe, processes, until_s)
        for probe, processes in zip(probes, started, strict=True)
    ]


def _start(arguments: tuple[str, ...], gpu: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "topd_ray.commands.doctor.probes", *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def judge(
    probe: Probe, processes: Sequence[subprocess.Popen[str]], until_s: float
) -> Finding:
    """Wait for the processes of a probe, end those that are late, and judge them."""
    said = ""
    complaint = ""
    for process in processes:
        try:
            said, errors = process.communicate(
                timeout=max(0.1, until_s - time.monotonic())
            )
        except subprocess.TimeoutExpired:
            complaint = complaint or "no answer before the deadline"
            continue
        if process.returncode != 0:
            lines = errors.strip().splitlines()
            complaint = lines[-1] if lines else f"exit code {process.returncode}"
    for process in processes:
        process.kill()
        process.communicate()
    if not complaint:
        return Finding(check=probe.check, verdict="ok", seen=said.strip())
    return Finding(
        check=probe.check,
        verdict="fails",
        seen=complaint,
        way_out=_WAYS_OUT[probe.kind],
    )


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port
