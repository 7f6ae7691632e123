"""Checks of the GPUs by the driver's own tool; nothing here starts CUDA."""

import csv
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from topd_ray.commands.doctor.finding import Finding

OLDEST_DRIVER = 580
"""The first branch of the driver that runs CUDA 13, for which torch is built."""
_ASKED = (
    "index,name,driver_version,memory.total,memory.used,mig.mode.current,"
    "ecc.errors.uncorrected.volatile.total,clocks_event_reasons.hw_slowdown"
)
_QUERY_S = 10.0
_TAKEN_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One row of `nvidia-smi --query-gpu`."""

    index: int
    name: str
    driver: str
    """E.g. 580.95.05."""
    memory_mib: float
    used_mib: float
    mig: bool
    """Split into instances, which Ray and vLLM take for whole GPUs."""
    broken: int
    """Memory errors since the start that could not be corrected."""
    slowed: bool
    """The hardware holds the clocks back: heat, or power."""


def ask_driver() -> list[Gpu]:
    """Return the GPUs that the driver lists; none where there is no driver."""
    text = _nvidia_smi(f"--query-gpu={_ASKED}", "--format=csv,noheader,nounits")
    return [] if text is None else parse_gpus(text)


def ask_peers() -> str | None:
    """Return the driver's table of which GPU reads which other's memory."""
    return _nvidia_smi("topo", "-p2p", "r")


def parse_gpus(text: str) -> list[Gpu]:
    """Return the GPUs of a table without a head. Fields may be "[N/A]"."""
    gpus = []
    for row in csv.reader(text.strip().splitlines(), skipinitialspace=True):
        index, name, driver, memory, used, mig, broken, slowed = row
        gpus.append(
            Gpu(
                index=int(index),
                name=name,
                driver=driver,
                memory_mib=float(memory),
                used_mib=float(used),
                mig=mig == "Enabled",
                broken=int(broken) if broken.isdigit() else 0,
                slowed=slowed == "Active",
            )
        )
    return gpus


def check_driver(gpus: Sequence[Gpu]) -> Finding:
    """Judge the driver's branch."""
    driver = gpus[0].driver
    if int(driver.partition(".")[0]) >= OLDEST_DRIVER:
        return Finding(check="driver", verdict="ok", seen=driver)
    return Finding(
        check="driver",
        verdict="fails",
        seen=f"{driver}; torch's build needs CUDA 13",
        way_out=(
            f"driver {OLDEST_DRIVER} or newer; on data-centre GPUs the package"
            " cuda-compat-13-0 instead"
        ),
    )


def check_memory(gpus: Sequence[Gpu]) -> Finding:
    """Judge what others hold of the GPUs: vLLM takes a share of the whole memory."""
    taken = [gpu for gpu in gpus if gpu.used_mib > _TAKEN_SHARE * gpu.memory_mib]
    if not taken:
        seen = (
            f"{len(gpus)} x {gpus[0].name}, {gpus[0].memory_mib / 1024:.0f} GiB, free"
        )
        return Finding(check="GPU memory", verdict="ok", seen=seen)
    held = ", ".join(
        f"GPU {gpu.index}: {gpu.used_mib / 1024:.1f} of {gpu.memory_mib / 1024:.0f} GiB"
        for gpu in taken
    )
    return Finding(
        check="GPU memory",
        verdict="fails",
        seen=f"taken by others: {held}",
        way_out="nvidia-smi lists their processes; end them, or hide these GPUs",
    )


def check_state(gpus: Sequence[Gpu]) -> Finding:
    """Judge MIG, memory errors and clocks."""
    check = "GPU state"
    for gpu in gpus:
        if gpu.mig:
            return Finding(
                check=check,
                verdict="fails",
                seen=f"GPU {gpu.index} is split into instances (MIG)",
                way_out="nvidia-smi --multi-instance-gpu=0, by its administrator",
            )
        if gpu.broken:
            return Finding(
                check=check,
                verdict="fails",
                seen=f"GPU {gpu.index}: {gpu.broken} uncorrected memory errors",
                way_out="another GPU; the machine has to be restarted or repaired",
            )
    slowed = [str(gpu.index) for gpu in gpus if gpu.slowed]
    if slowed:
        return Finding(
            check=check,
            verdict="note",
            seen=f"clocks of GPU {', '.join(slowed)} are held back (heat or power)",
            way_out="nvidia-smi --query --display=PERFORMANCE says why",
        )
    return Finding(check=check, verdict="ok", seen="no MIG, no memory errors")


def check_peers(table: str | None, count: int) -> Finding:
    """Judge the driver's matrix of which GPU reads which: " GPU0 X OK", a row a GPU."""
    check = "GPU to GPU"
    rows = [line.split() for line in (table or "").splitlines()]
    # The head names GPUs too, and has one cell fewer than a row.
    cells = [row[1:] for row in rows if row and row[0].startswith("GPU")]
    cells = [row for row in cells if "X" in row]
    if len(cells) < count:
        return Finding(check=check, verdict="note", seen="nvidia-smi topo has no table")
    apart = sum(cell not in ("X", "OK") for row in cells for cell in row[:count])
    if not apart:
        return Finding(check=check, verdict="ok", seen="every pair reads each other")
    return Finding(
        check=check,
        verdict="note",
        seen=f"{apart // 2} pairs cannot read each other's memory",
        way_out="NCCL copies through the host; IOMMU (ACS) may be what forbids it",
    )


def _nvidia_smi(*options: str) -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", *options],
            capture_output=True,
            text=True,
            timeout=_QUERY_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
