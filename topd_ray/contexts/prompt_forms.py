"""Load and fill prompt forms: the texts in which a teacher is asked.

A form is a text with gaps: `{problem}`, `{reference}`, `{attempt}`. There is one form
for each context in which the teacher sees more than the student's prompt. A file of
forms is YAML with the three keys of `Forms`; each text has each of its gaps exactly
once.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from topd_ray.contexts.built_in_forms import CODE, MATH
from topd_ray.errors import UserError

GAPS: dict[str, frozenset[str]] = {
    "reference": frozenset({"problem", "reference"}),
    "refine": frozenset({"problem", "attempt"}),
    "refine_reference": frozenset({"problem", "reference", "attempt"}),
}
_GAP = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """The form of each context; the plain context (the problem alone) needs none.

    Example: `refine="{problem} Correct this: {attempt}"`.
    """

    reference: str
    refine: str
    refine_reference: str


BUILT_IN = {"math": Forms(**MATH), "code": Forms(**CODE)}


def load_forms(name: str) -> Forms:
    """Return the built-in forms `math` or `code`, or those of the YAML file `name`.

    Raises UserError that names the file, the key and the gap.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    return _checked(_read(name), name)


def render(form: str, **texts: str) -> str:
    """Return the form with its gaps filled."""
    # One pass: a solution may hold "{problem}" itself, and must come through as it is.
    return _GAP.sub(lambda gap: texts[gap[1]], form)


def _checked(values: Any, name: str) -> Forms:
    if not isinstance(values, dict) or set(values) != set(GAPS):
        found = (
            sorted(map(str, values))
            if isinstance(values, dict)
            else type(values).__name__
        )
        raise UserError(
            f"prompts.forms={name}: expected the keys {', '.join(GAPS)}, found {found}"
        )
    for key, text in values.items():
        _check_gaps(key, text, name)
    return Forms(**values)


def _check_gaps(key: str, text: object, name: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"prompts.forms={name}, {key}: expected text, found {text!r}")
    found = _GAP.findall(text)
    # Lists, not sets: a gap that occurs twice is refused too.
    if sorted(found) != sorted(GAPS[key]):
        wanted, seen = (
            ", ".join(f"{{{gap}}}" for gap in sorted(gaps)) or "none"
            for gaps in (GAPS[key], found)
        )
        raise UserError(
            f"prompts.forms={name}, {key}: expected each of {wanted} once and no other"
            f" word in braces, found {seen}"
        )


def _read(name: str) -> Any:
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"prompts.forms={name}: no such file; expected {', '.join(BUILT_IN)}, or a"
            f" YAML file with the keys {', '.join(GAPS)}"
        )
    try:
        return yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, OSError) as error:
        raise UserError(
            f"prompts.forms={name}: not readable as YAML:"
            f" {' '.join(str(error).split())}"
        ) from None


__all__ = ["BUILT_IN", "GAPS", "Forms", "load_forms", "render"]
