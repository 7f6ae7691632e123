"""What a result rests on: config, seeds, model files, versions, machine, commit."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
    """Of one study's results."""

    config_hash: str
    config: dict[str, Any]
    """The study's section and the resolved run config."""
    study_seed: int
    run_seed: int
    versions: dict[str, str]
    hardware: str
    cores: int
    commit: str | None
    """Of the code, where it lies in a git work tree."""
    dirty: bool
    """Code, models or configs differ from that commit."""
    wall_s: float


def make_provenance(
    config: Config, section: dict[str, Any], *, study_seed: int, wall_s: float
) -> Provenance:
    """Look around this machine; `section` is the study's own part of its file."""
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


def config_hash(config: Config, section: dict[str, Any], *, study_seed: int) -> str:
    """Changes with every number a result depends on, and with the model files
    themselves.

    Files count by name, size and time of change: reading tens of gigabytes would take
    longer than some studies.
    """
    folders = [
        Path(config.learner.model),
        Path(config.teacher_model),
        Path(config.prompts.path),
    ]
    parts = [
        config.model_dump(mode="json"),
        section,
        study_seed,
        list(map(_stamp, folders)),
    ]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    files = (
        sorted(path.glob("*")) if path.is_dir() else [path] if path.is_file() else []
    )
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """CPU model and logical cores, and the GPUs that torch sees, where it is loaded
    anyway.
    """
    processor = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        lines = facts.read_text(encoding="utf-8").splitlines()
        names = [
            line.split(":", 1)[1].strip()
            for line in lines
            if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    gpus = ""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gpus = f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{processor} ({os.cpu_count()} logical cores){gpus}"


def commit() -> tuple[str | None, bool]:
    """Of the work tree that holds this code, and whether code or configs differ from
    it.
    """
    here = Path(__file__).parent
    try:
        head, status = (
            subprocess.run(
                ["git", "-C", str(here), *command],
                capture_output=True,
                text=True,
                timeout=_GIT_DEADLINE_S,
                check=True,
            ).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", ":/topd_ray", ":/configs"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None, False
    return head, bool(status)


__all__ = ["Provenance", "commit", "config_hash", "hardware", "make_provenance"]
