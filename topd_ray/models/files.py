"""Text and JSON files of a model folder; an error names the file."""

import json
from pathlib import Path
from typing import Any, cast

from topd_ray.errors import UserError

CONFIG = "config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json. Raises UserError where it is missing or broken."""
    return read_json(folder / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises UserError where there is none."""
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not readable as JSON (truncated?)") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected a JSON object, found {type(values).__name__}"
        )
    return cast("dict[str, Any]", values)


def read_text(path: Path) -> str:
    """Return a text file. Raises UserError where it is missing or not UTF-8."""
    if not path.is_file():
        raise UserError(f"{path.parent}: no {path.name}")
    try:
        # Not read_text, which decodes by the machine's locale.
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected UTF-8 text, found other bytes") from None
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror}") from None


def whole_number(folder: Path, config: dict[str, Any], field: str) -> int:
    """Return a field of config.json that must be a whole number of at least 1."""
    value = config.get(field)
    if not isinstance(value, int) or value < 1:
        raise UserError(
            f"{folder / CONFIG}: {field}={value!r}: expected a whole number"
        )
    return value


__all__ = ["CONFIG", "read_config", "read_json", "read_text", "whole_number"]
