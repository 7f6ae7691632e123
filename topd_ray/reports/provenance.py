"""What a result rests on: config, seeds, model files, versions, machine, commit."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from topd_ray.config import Config

_PACKAGES = (
    "topd_ray",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "POT",
    "geomloss",
    "matplotlib",
)
_GIT_DEADLINE_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What the results of one study rest on."""

    config_hash: str
    config: dict[str, object]
    """The study's section and the resolved run config."""
    study_seed: int
    run_seed: int
    versions: dict[str, str]
    hardware: str
    cores: int
    commit: str | None
    """Commit of the code; None outside a git work tree."""
    dirty: bool
    """Whether code or configs differ from that commit."""
    wall_s: float


def make_provenance(
    config: Config, section: Mapping[str, object], *, study_seed: int, wall_s: float
) -> Provenance:
    """Return the provenance of results that this process has made.

    `section` is the study's own part of its file; `wall_s` is in seconds.
    """
    code, dirty = commit()
    return Provenance(
        config_hash=config_hash(config, section, study_seed=study_seed),
        config={"study": section, "run": config.model_dump(mode="json")},
        study_seed=study_seed,
        run_seed=config.run.seed,
        versions=_versions(),
        hardware=hardware(),
        cores=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        commit=code,
        dirty=dirty,
        wall_s=wall_s,
    )


def config_hash(
    config: Config, section: Mapping[str, object], *, study_seed: int
) -> str:
    """Return a hash of the values and the files that a result depends on."""
    folders = [
        Path(config.learner.model),
        Path(config.teacher_model),
        Path(config.prompts.path),
    ]
    # Files count by name, size and time of change: reading tens of gigabytes would take
    # longer than some studies.
    stamps = [_stamp(folder) for folder in folders]
    parts = [config.model_dump(mode="json"), section, study_seed, stamps]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    """Return name, bytes and time of change (ns) of a file, or of a folder's files."""
    files: list[Path] = []
    if path.is_dir():
        files = sorted(path.glob("*"))
    elif path.is_file():
        files = [path]
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def hardware() -> str:
    """Return the CPU model, the logical cores, and the GPUs that torch sees."""
    processor = platform.processor() or platform.machine()
    # platform.processor() is empty on most Linux machines.
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [
            line.split(":", 1)[1].strip()
            for line in lines
            if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    gpus = ""
    # Read, not imported: a caller that does without torch need not wait for it.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gpus = f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{processor} ({os.cpu_count()} logical cores){gpus}"


def commit() -> tuple[str | None, bool]:
    """Return the commit of this code, and whether code or configs differ from it.

    The commit is None where the code lies in no git work tree.
    """
    try:
        head = _git("rev-parse", "HEAD")
        status = _git("status", "--porcelain", "--", ":/topd_ray", ":/configs")
    except (OSError, subprocess.SubprocessError):
        return None, False
    return head, bool(status)


def _git(*command: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), *command],
        capture_output=True,
        text=True,
        timeout=_GIT_DEADLINE_S,
        check=True,
    )
    return done.stdout.strip()


__all__ = ["Provenance", "commit", "config_hash", "hardware", "make_provenance"]
