"""Verify that a world directory holds what its build wrote; loads no torch."""

import hashlib
import json
from pathlib import Path

from topd_ray.errors import UserError

RECIPE_FILE = "recipe.json"
SHIPPED_WORLD = Path(__file__).parent / "world"


def verify_world(directory: Path) -> None:
    """Compare every file with its checksum in recipe.json.

    Raises UserError that names the first file that differs, is missing or is extra.
    """
    recipe_path = directory / RECIPE_FILE
    if not recipe_path.is_file():
        raise UserError(
            f"{directory} is no toy world: {RECIPE_FILE} is missing; build it again"
        )
    expected: dict[str, str] = json.loads(recipe_path.read_text())["sha256"]
    actual = checksums(directory)
    # Both sides: a file too many counts as well, since a loader might read it.
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise UserError(
                f"{directory / name}: sha256 is {actual.get(name, 'that of no file')},"
                f" recipe.json says {expected.get(name, 'nothing of it')}; restore the"
                " file or build again"
            )


def checksums(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file but recipe.json, by its path in the world."""
    return {
        path.relative_to(directory).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / RECIPE_FILE
    }
