"""Which column of a row holds what: the names that published data use, or the user's.

| what | columns, in the order in which they are taken |
|---|---|
| prompt | `messages`, `conversations`, `prompt`; else one of `OTHER_PROMPTS` |
| answer | `answer`, `reward_model.ground_truth`, `label`, `ground_truth`, ... |
| reference | `reference`, `solution` |
| response | `response`, `completion`, `output` |
| system | `system`, `system_prompt` |
| prompt_id | `prompt_id`, `id` |

`prompts.columns` names another column for any of them, or null for none.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from topd_ray.config import Column
from topd_ray.prompts.shown import RowError, shown

OWN_PROMPTS = ("messages", "conversations", "prompt")
"""Forms of a prompt in the order in which they count: UltraChat, for example, holds
`messages` and their first turn again as `prompt`.
"""
OTHER_PROMPTS = ("question", "problem", "query", "instruction", "input")
"""Columns of GSM8K, DeepScaleR, MetaMath, Alpaca and OpenRLHF. None of them is taken
where a row holds two: an Alpaca `input` belongs behind its `instruction`.
"""
FORMS = "`messages`, `conversations`, `prompt`, `question` or `problem`"
NAMES: dict[Column, tuple[str, ...]] = {
    "answer": (
        "answer",
        "reward_model.ground_truth",
        "label",
        "ground_truth",
        "expected_answer",
        "final_answer",
    ),
    "reference": ("reference", "solution"),
    "response": ("response", "completion", "output"),
    "system": ("system", "system_prompt"),
    "prompt_id": ("prompt_id", "id"),
}


class RowCell(NamedTuple):
    """A value of a row, and the column that it comes from, for errors."""

    column: str
    value: Any


class Columns:
    """Finds values in rows, by the names of the user before the usual ones."""

    def __init__(
        self, named: Mapping[Column, str | None], *, field: str = "prompts.columns"
    ) -> None:
        """Take the user's names; `field` is where they stand, for errors."""
        self._named = named
        self._field = field

    def prompt(self, row: Mapping[str, Any]) -> RowCell:
        """Return the column that holds the prompt.

        Raises RowError where there is none, or where several could be meant.
        """
        cell = self.named("prompt", row)
        if cell is not None:
            return cell
        for name in OWN_PROMPTS:
            if row.get(name) is not None:
                return RowCell(name, row[name])
        others = [name for name in OTHER_PROMPTS if row.get(name) is not None]
        if len(others) == 1:
            return RowCell(others[0], row[others[0]])
        keys = shown(sorted(map(str, row)))
        if others:
            raise RowError(
                f"any of {_listed(others)} could be the prompt (found the keys {keys});"
                f" set {self._field}.prompt to one of them"
            )
        raise RowError(
            f"expected {FORMS}, found the keys {keys}; set {self._field}.prompt to the"
            " column that holds the prompt"
        )

    def present(self, what: Column, row: Mapping[str, Any]) -> list[RowCell]:
        """Return the columns that are there and not null, the first to count first.

        Where the user names a column, it is the only one. Raises RowError where the row
        lacks it.
        """
        if what in self._named:
            cell = self.named(what, row)
            return [] if cell is None or cell.value is None else [cell]
        found = [RowCell(name, value_at(row, name)) for name in NAMES[what]]
        return [cell for cell in found if cell.value is not None]

    def held(self, what: Column, row: Mapping[str, Any]) -> list[RowCell]:
        """Return those of `present` that hold more than blanks."""
        cells = self.present(what, row)
        return [cell for cell in cells if not _is_blank(cell.value)]

    def named(self, what: Column, row: Mapping[str, Any]) -> RowCell | None:
        """Return the value in the user's column; None where none is named.

        Raises RowError where the row has no such column.
        """
        name = self._named.get(what)
        if name is None:
            return None
        if not _has(row, name):
            raise RowError(
                f"{self._field}.{what}={name}: no such column; found the keys"
                f" {shown(sorted(map(str, row)))}"
            )
        return RowCell(name, value_at(row, name))

    def ambiguous(self, what: Column, cells: Sequence[RowCell]) -> RowError:
        """Return the error for columns of one meaning that hold different things."""
        values = ", ".join(f"{cell.column}={shown(cell.value)}" for cell in cells)
        return RowError(
            f"{values} could each be the {what}; set {self._field}.{what} to one of"
            " them"
        )


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """Return a column, or with dots a key inside it; None where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def _has(row: Mapping[str, Any], name: str) -> bool:
    if name in row:
        return True
    head, _, last = name.rpartition(".")
    inner = value_at(row, head) if head else row
    return isinstance(inner, Mapping) and last in inner


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


__all__ = ["FORMS", "OTHER_PROMPTS", "OWN_PROMPTS", "Columns", "RowCell", "value_at"]
