"""Fingerprints of the files that decide what a run computes.

A checkpoint holds them, so that a resumed run notices another file of the same name.
"""

from collections.abc import Iterator
from pathlib import Path

import xxhash

from topd_ray.config import Config
from topd_ray.contexts.prompt_forms import BUILT_IN
from topd_ray.models.chat_template import TEMPLATE, TOKENIZER_CONFIG
from topd_ray.models.files import CONFIG
from topd_ray.models.headers import weight_files
from topd_ray.models.stop_ids import GENERATION_CONFIG
from topd_ray.models.vocabulary import TOKENIZER

Fingerprints = dict[str, str]
"""Field, or field and part of a model ("learner.model/weights") -> 128 bits in hex."""

MODEL_FILES = (CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE)
"""Files of a model folder that are read whole, as far as they are there."""
NUM_PIECES = 16
PIECE_BYTES = 2**16
"""Weights are read in pieces: a folder of a terabyte takes seconds, and weights that
were trained differ in all of them.
"""
_BUFFER_BYTES = 2**24


def take_fingerprints(config: Config, *, student: Path, teacher: Path) -> Fingerprints:
    """Return the fingerprints of data and models; those of absent files are left out.

    The teacher's are left out where it is the student.
    """
    found: Fingerprints = {}
    for field, path in (
        ("prompts.path", config.prompts.path),
        ("evaluation.path", config.evaluation.path),
        ("prompts.forms", _forms(config)),
    ):
        if path is not None:
            found[field] = _of_data(Path(path))
    found |= _of_model("learner.model", student)
    if config.teacher.model is not None:
        found |= _of_model("teacher.model", teacher)
    return found


def _forms(config: Config) -> str | None:
    """Return the file of forms that the run reads; None where it reads none."""
    name = config.prompts.forms
    return None if config.objective.context == "plain" or name in BUILT_IN else name


def _of_model(field: str, folder: Path) -> Fingerprints:
    found = {
        f"{field}/{name}": _of_data(folder / name)
        for name in MODEL_FILES
        if (folder / name).is_file()
    }
    digest = xxhash.xxh3_128()
    for file in weight_files(folder):
        digest.update(file.name.encode())
        for piece in _pieces(file):
            digest.update(piece)
    return found | {f"{field}/weights": digest.hexdigest()}


def _of_data(path: Path) -> str:
    """Return the fingerprint of a file, or of all files of a data set's folder."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    digest = xxhash.xxh3_128()
    for file in files:
        if file != path:
            digest.update(str(file.relative_to(path)).encode())
        if file.is_file():
            with file.open("rb") as data:
                while piece := data.read(_BUFFER_BYTES):
                    digest.update(piece)
    return digest.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    """Yield a file's size, its first bytes (names and shapes), and more pieces."""
    size = file.stat().st_size
    yield str(size).encode()
    with file.open("rb") as data:
        if size <= NUM_PIECES * PIECE_BYTES:
            yield data.read()
            return
        for index in range(NUM_PIECES):
            # The last piece ends where the file ends.
            data.seek(index * (size - PIECE_BYTES) // (NUM_PIECES - 1))
            yield data.read(PIECE_BYTES)


__all__ = ["Fingerprints", "take_fingerprints"]
