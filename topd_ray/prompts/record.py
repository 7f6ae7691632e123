"""Parse one row of the data into a record, or say in one line what is wrong.

A row holds a prompt: turns (`messages`, `conversations`, `prompt`) or the text of one
turn of a user. It may also hold an answer, a reference, and a given response:
`response_ids`, `response`, or else the assistant turns at the end, which are never part
of the prompt. `finish_reason` says whether that response ended ("stop") or was cut
("length"). columns.py says by which names they go.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from topd_ray.messages import FinishReason
from topd_ray.prompts.columns import FORMS, Columns, RowCell
from topd_ray.prompts.shown import RowError, shown
from topd_ray.prompts.turns import Turn, parse_text, parse_turns

# GSM8K ends a worked solution with a line that holds the answer: #### 1,234
_WORKED = re.compile(r"(?s)(.*?)^[ \t]*####[ \t]*(\S[^\n]*?)\s*\Z", re.MULTILINE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRecord:
    """One row of the data, before the chat template.

    Example: `{"prompt": "2 + 2?", "answer": 4}` gives one user turn and answer "4".
    """

    prompt_id: str
    turns: tuple[Turn, ...]
    answer: str | None
    reference: str | None = None
    response: str | None = None
    response_ids: tuple[int, ...] | None = None
    """The response as token ids, as `topd generate` writes it; counts before text."""
    finish_reason: FinishReason | None = None
    """How the response ended; None where the row does not say."""


def parse_row(row: object, *, default_id: str, columns: Columns) -> PromptRecord:
    """Return the record of one row. Raises RowError."""
    if not isinstance(row, Mapping):
        raise RowError(f"expected an object with {FORMS}, found {shown(row)}")
    if row.get("tools"):
        raise RowError(
            f"tools: tools are not rendered, found {shown(row['tools'])}; leave the"
            " column out if the prompts can do without"
        )
    turns = _turns(row, columns)
    response_turns: list[str] = []
    while turns and turns[-1].role == "assistant":
        response_turns.insert(0, turns.pop().text)
    spoken = "\n\n".join(response_turns).strip()
    answer, worked = _answer(row, columns)
    return PromptRecord(
        prompt_id=_prompt_id(columns.present("prompt_id", row), default_id),
        turns=tuple(turns),
        answer=answer,
        reference=_first_text(columns.held("reference", row)) or worked,
        response=_response(row, columns) or spoken or None,
        response_ids=_token_ids(row.get("response_ids")),
        finish_reason=_finish_reason(row.get("finish_reason")),
    )


def _turns(row: Mapping[str, Any], columns: Columns) -> list[Turn]:
    column, value = columns.prompt(row)
    if isinstance(value, list) or column in ("messages", "conversations"):
        turns = parse_turns(value, column)
    else:
        turns = [Turn(role="user", text=parse_text(value, column))]
    system = columns.held("system", row)
    text = _first_text(system)
    first = turns[0] if turns else None
    if text is None or first == Turn("system", text):
        return turns
    if first is not None and first.role == "system":
        raise RowError(
            f"{system[0].column}: {shown(text)} beside another system turn,"
            f" {shown(first.text)}; leave one of them out"
        )
    return [Turn(role="system", text=text), *turns]


def _response(row: Mapping[str, Any], columns: Columns) -> str | None:
    """Return the given response: text, or turns of the assistant."""
    cells = columns.held("response", row)
    texts = [_spoken(cell) for cell in cells]
    if len(set(texts)) > 1:
        raise columns.ambiguous("response", cells)
    return texts[0] if texts else None


def _spoken(cell: RowCell) -> str | None:
    if not isinstance(cell.value, list):
        return _text(cell)
    turns = parse_turns(cell.value, cell.column)
    others = [turn.role for turn in turns if turn.role != "assistant"]
    if others:
        raise RowError(
            f"{cell.column}: expected turns of the assistant alone, found one of"
            f" {others[0]}"
        )
    return "\n\n".join(turn.text for turn in turns).strip() or None


def _first_text(cells: Sequence[RowCell]) -> str | None:
    """Return the stripped text of the first column; None where there is none."""
    return _text(cells[0]) if cells else None


def _text(cell: RowCell) -> str | None:
    return parse_text(cell.value, cell.column).strip() or None


def _prompt_id(cells: Sequence[RowCell], default_id: str) -> str:
    value = cells[0].value if cells else default_id
    # `true` is an int to Python, but no id.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise RowError(
            "prompt_id: expected printable text or a whole number, found"
            f" {shown(value)}; prompts.columns={{prompt_id: null}} numbers the rows"
        )
    return value


def _answer(row: Mapping[str, Any], columns: Columns) -> tuple[str | None, str | None]:
    """Return the answer, and the worked solution in front of it where there is one.

    Columns of one meaning must agree. 3.0 becomes "3", and blank text None.
    """
    cells = columns.held("answer", row)
    read = [_answer_text(cell) for cell in cells]
    answers = [answer for answer, _ in read if answer is not None]
    if len(set(answers)) > 1:
        raise columns.ambiguous("answer", cells)
    worked = next((solution for _, solution in read if solution is not None), None)
    return (answers[0] if answers else None), worked


def _answer_text(cell: RowCell) -> tuple[str | None, str | None]:
    value = cell.value
    if isinstance(value, list):
        if len(value) > 1:
            raise RowError(
                f"{cell.column}: expected one answer, found {shown(value)}; keep the"
                " one to compare with"
            )
        return _answer_text(RowCell(cell.column, value[0] if value else None))
    if value is None:
        return None, None
    if isinstance(value, str):
        return _split(parse_text(value, cell.column).strip())
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), None
    # A column of whole numbers with a gap is often stored as floats.
    if isinstance(value, float) and math.isfinite(value):
        return (str(int(value)) if value.is_integer() else str(value)), None
    raise RowError(
        f"{cell.column}: expected text or a number, found {shown(value)};"
        " prompts.columns.answer names another column, or null for none"
    )


def _split(text: str) -> tuple[str | None, str | None]:
    """Return the answer behind `####` and the solution before it, as in GSM8K."""
    found = _WORKED.fullmatch(text)
    if found is None:
        return text or None, None
    return _THOUSANDS.sub("", found[2]), found[1].strip() or None


def _token_ids(value: object) -> tuple[int, ...] | None:
    """Return the ids; None where they are missing or the list is empty."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(
        isinstance(token, int) and not isinstance(token, bool) and token >= 0
        for token in value
    ):
        raise RowError(
            f"response_ids: expected a list of token ids, found {shown(value)}"
        )
    return tuple(value) or None


def _finish_reason(value: object) -> FinishReason | None:
    """Return the reason, or None where there is none. Raises RowError for another."""
    if value is None:
        return None
    if value == "stop":
        return "stop"
    if value == "length":
        return "length"
    # Not guessed at: a truncated answer must never pass for a finished one.
    raise RowError(
        f"finish_reason: expected stop or length, found {shown(value)}; set it to what"
        " it means, or leave the column out"
    )


__all__ = ["PromptRecord", "parse_row"]
