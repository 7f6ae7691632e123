"""Checks of the machine around the GPUs: shared memory, limits, ports, disk.

Each takes readings and returns a finding, so that a test can plant a fault.
"""

import resource
import shutil
import socket
from pathlib import Path

from topd_ray.commands.doctor.finding import Finding, not_looked_at

SHARED_MEMORY = Path("/dev/shm")
_INFINIBAND = Path("/sys/class/infiniband")
_GIB = 2**30
_BESIDE_STORE_GIB = 10.0
"""Shared memory that NCCL and vLLM's workers use beside Ray's object store."""
_FEW_FILES = 1024
_MANY_FILES = 65536
_RAY_PORT = 6379
_CONNECT_S = 3.0


def free_gib(folder: Path) -> float:
    """Return the free space of a folder's file system in GiB."""
    return shutil.disk_usage(folder).free / _GIB


def check_shared_memory(
    free: float, object_store_gib: float, *, has_gpu: bool
) -> Finding:
    """Compare /dev/shm with the object store, which Ray puts there whole.

    Args:
        free: GiB that are free in /dev/shm.
        object_store_gib: `cluster.object_store_gib`.
        has_gpu: NCCL and vLLM's workers need room beside it.
    """
    seen = f"{free:,.3g} GiB free, object store {object_store_gib:,.3g} GiB"
    wanted = object_store_gib + (_BESIDE_STORE_GIB if has_gpu else 0.0)
    if free >= wanted:
        return Finding(check=str(SHARED_MEMORY), verdict="ok", seen=seen)
    return Finding(
        check=str(SHARED_MEMORY),
        verdict="fails" if free < object_store_gib else "note",
        seen=seen,
        way_out=(
            f"docker run --shm-size={wanted:.0f}g, or a Memory emptyDir at /dev/shm;"
            " or lower cluster.object_store_gib"
        ),
    )


def open_files_limit() -> int:
    """Return how many files a process may open (`ulimit -n`)."""
    return _number(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def check_open_files(limit: int) -> Finding:
    """Judge `ulimit -n`: each actor holds some hundred files and sockets open."""
    if limit >= _MANY_FILES:
        return Finding(check="open files", verdict="ok", seen=f"{limit:,}")
    return Finding(
        check="open files",
        verdict="fails" if limit < _FEW_FILES else "note",
        seen=f"{limit:,}",
        way_out=f"ulimit -n {_MANY_FILES} before `ray start` or `topd train`",
    )


def locked_memory_limit() -> int:
    """Return how many bytes a process may lock (`ulimit -l`)."""
    return _number(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])


def infiniband_devices() -> list[str]:
    """Return the names of the machine's InfiniBand devices."""
    return sorted(path.name for path in _INFINIBAND.glob("*"))


def check_locked_memory(limit: int, devices: list[str]) -> Finding:
    """Judge `ulimit -l`: NCCL registers its buffers with the InfiniBand card."""
    check = "locked memory"
    unlimited = limit >= 2**62
    seen = "unlimited" if unlimited else f"{limit / 2**20:,.3g} MiB"
    if not devices:
        return Finding(check=check, verdict="ok", seen=f"{seen}; no InfiniBand")
    seen += f", {', '.join(devices)}"
    if unlimited:
        return Finding(check=check, verdict="ok", seen=seen)
    return Finding(
        check=check,
        verdict="fails",
        seen=seen,
        way_out="docker run --ulimit memlock=-1, IPC_LOCK in a pod, or ulimit -l",
    )


def check_ray(address: str | None, *, port: int = _RAY_PORT) -> Finding:
    """Connect to the cluster's address; without one, say whether Ray's port is free."""
    check = "Ray"
    if address is None:
        taken = _listens("127.0.0.1", port)
        if not taken:
            seen = f"port {port} is free; a run starts its own Ray"
            return Finding(check=check, verdict="ok", seen=seen)
        return Finding(
            check=check,
            verdict="note",
            seen=f"something listens on port {port}",
            way_out=(
                "set cluster.address if it is your cluster; else give"
                " `ray start --head` another --port"
            ),
        )
    host, colon, number = address.rpartition(":")
    if not colon or not number.isdigit():
        return not_looked_at(check, f"cluster.address={address} names no port")
    if _listens(host.strip("[]"), int(number)):
        return Finding(check=check, verdict="ok", seen=f"{address} answers")
    return Finding(
        check=check,
        verdict="fails",
        seen=f"cluster.address={address}: nothing answers",
        way_out="`ray start --head` there, or open the port",
    )


def check_disk(check: str, free: float, needed: float, what: str) -> Finding:
    """Compare the free space of a disk in GiB with what a run writes to it."""
    seen = f"{free:,.3g} GiB free, {what} {needed:,.3g} GiB"
    if free >= needed:
        return Finding(check=check, verdict="ok", seen=seen)
    return Finding(
        check=check,
        verdict="fails",
        seen=seen,
        way_out="a larger disk; for checkpoints, lower run.keep_checkpoints",
    )


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def _number(limit: int) -> int:
    # -1 stands for "no limit".
    return 2**63 - 1 if limit == resource.RLIM_INFINITY else limit
