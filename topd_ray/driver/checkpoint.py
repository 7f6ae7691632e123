"""Checkpoints: the learner's state and the driver's, whole or not there at all.

    written aside -> flushed to disk, a checksum of each file -> moved into place ->
    `latest` moves

Up to the last move `latest` names the checkpoint before, and that one is not touched.
"""

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from topd_ray.errors import UserError
from topd_ray.records.run_folder import RunFolder, write_json, write_whole

MANIFEST = "manifest.json"
_DRIVER = "driver.json"
_READERS = 4
_PIECE_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A finished checkpoint folder and the driver's state in it."""

    path: Path
    driver: dict[str, object]


async def save_checkpoint(
    folder: RunFolder,
    write_learner: Callable[[Path], Awaitable[None]],
    *,
    step: int,
    driver: Mapping[str, object],
    keep: int,
    keep_every: int,
) -> Path:
    """Save, then remove all but the newest `keep` and every `keep_every`-th step's.

    `write_learner(folder)` writes the learner's state; `driver` is the driver's. With
    `keep_every` 0 only the newest are kept. A checkpoint that `latest` names already is
    left as it is: at no moment is there none.
    """
    target = folder.checkpoints / f"step_{step}"
    if _newest(folder) == target.name:
        return target
    aside = folder.checkpoints / f".step_{step}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        await write_learner(aside)
        write_json(aside / _DRIVER, dict(driver))
        await asyncio.to_thread(seal, aside)
    except BaseException:  # a full disk, a dead rank: what is there is no checkpoint
        shutil.rmtree(aside, ignore_errors=True)
        raise
    # a folder of that name is of steps that the run went back from, and not the latest
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    _flush(folder.checkpoints)
    make_latest(folder, target.name)
    past = [path for path in _finished(folder) if _step(path) <= step]
    for old in past[:-keep]:
        if not keep_every or _step(old) % keep_every:
            shutil.rmtree(old)
    return target


def open_checkpoint(folder: RunFolder, name: str | None = None) -> Checkpoint | None:
    """Read the checkpoint `name` (`step_20`), by default the one that `latest` names.

    Returns None where the run has written none yet. Changes nothing: `make_latest`
    does, once this process holds the run's lock. Raises UserError where the checkpoint
    is not whole, and says which one is.
    """
    pointer = _pointer(folder)
    if name is None and not pointer.is_file():
        return None
    present = [path.name for path in _finished(folder)]
    if name is not None and name not in present:
        raise UserError(
            f"--checkpoint {name}: {folder.path} has {', '.join(present) or 'none'}"
        )
    newest = _newest(folder) if name is None else name
    if newest not in present:
        way_out = "start the run anew under another run.name"
        if present:
            way_out = (
                f"`topd resume {folder.path} --checkpoint {present[-1]}` goes on from"
                " one that is there"
            )
        raise UserError(
            f"{pointer}: names {newest[:40]!r}, there is"
            f" {', '.join(present) or 'none'}; {way_out}"
        )
    path = folder.checkpoints / newest
    broken = fault(path)
    if broken is not None:
        raise UserError(f"{path}: {broken}; {_way_out(folder, path)}")
    try:
        driver = json.loads((path / _DRIVER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path / _DRIVER}: no JSON ({error}); {_way_out(folder, path)}"
        ) from None
    return Checkpoint(path, driver)


def make_latest(folder: RunFolder, name: str) -> None:
    """Let `latest` name a checkpoint; only a process that holds the run's lock may."""
    write_whole(_pointer(folder), name + "\n")
    _flush(folder.checkpoints)


def seal(path: Path) -> None:
    """Flush every file of a folder to disk, and write down what is in it."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    with ThreadPoolExecutor(_READERS) as pool:
        sums = list(pool.map(_flushed_sum, files))
    names = [file.relative_to(path).as_posix() for file in files]
    facts = [
        {"bytes": file.stat().st_size, "xxh3_128": digest}
        for file, digest in zip(files, sums, strict=True)
    ]
    write_json(path / MANIFEST, dict(zip(names, facts, strict=True)))
    for below in [*path.rglob("*"), path]:
        if below.is_dir():
            _flush(below)


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder; None where every byte is as it was
    written.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        entries = [
            (path / name, int(of["bytes"]), of["xxh3_128"])
            for name, of in manifest.items()
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    if path / _DRIVER not in (file for file, *_ in entries):
        return f"{MANIFEST} does not name {_DRIVER}"
    for file, num_bytes, _ in entries:
        size = file.stat().st_size if file.is_file() else None
        if size != num_bytes:
            there = "is missing" if size is None else f"has {size:,} bytes"
            return f"{file.name} {there}, {num_bytes:,} were written"
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(_sum, [file for file, *_ in entries])
        for (file, _, written), digest in zip(entries, found, strict=True):
            if digest != written:
                return (
                    f"{file.name} has checksum {digest[:12]}, {written[:12]} was"
                    " written"
                )
    return None


def _way_out(folder: RunFolder, broken: Path) -> str:
    whole = [
        path for path in _finished(folder) if path != broken and fault(path) is None
    ]
    if not whole:
        return (
            "no other checkpoint of this run is whole; start it anew under another"
            " run.name"
        )
    return (
        f"`topd resume {folder.path} --checkpoint {whole[-1].name}` goes on from one"
        " that is"
    )


def _finished(folder: RunFolder) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(folder.checkpoints.glob("step_*"), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _pointer(folder: RunFolder) -> Path:
    return folder.checkpoints / "latest"


def _newest(folder: RunFolder) -> str:
    """What `latest` names; nothing where there is none."""
    pointer = _pointer(folder)
    return (
        pointer.read_bytes().decode("utf-8", "replace").strip()
        if pointer.is_file()
        else ""
    )


def _flushed_sum(file: Path) -> str:
    _flush(file)
    return _sum(file)


def _sum(file: Path) -> str:
    """Return 128 bits: enough to notice a torn or rotten file."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as data:
        while piece := data.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """To disk: a file's bytes, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
