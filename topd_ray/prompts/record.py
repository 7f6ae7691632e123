"""Parse one row of the data into a record, or say in one line what is wrong.

A row holds `messages` ([{role, content}]), ShareGPT `conversations` ([{from, value}])
or a plain `prompt`; the first of them that it has counts. It may also hold an
`answer`, a `reference` (or `solution`), and a given response: `response_ids`,
`response`, or else the assistant turns at the end, which are never part of the prompt.
`finish_reason` says whether that response ended ("stop") or was cut ("length").
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from topd_ray.messages import FinishReason

FORMS = "`messages`, `conversations` or `prompt`"
ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
}
SHOWN_CHARS = 80


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    text: str


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


class RowError(Exception):
    """One row is malformed; `read_records` adds the file and the line."""


def parse_row(row: object, *, default_id: str) -> PromptRecord:
    """Return the record of one row. Raises RowError."""
    if not isinstance(row, dict):
        raise RowError(f"expected an object with {FORMS}, found {shown(row)}")
    turns = _turns(row)
    response_turns: list[str] = []
    while turns and turns[-1].role == "assistant":
        response_turns.insert(0, turns.pop().text)
    spoken = "\n\n".join(response_turns).strip()
    return PromptRecord(
        prompt_id=_prompt_id(row, default_id),
        turns=tuple(turns),
        answer=_answer(row.get("answer")),
        reference=_optional_text(row, "reference") or _optional_text(row, "solution"),
        response=_optional_text(row, "response") or spoken or None,
        response_ids=_token_ids(row.get("response_ids")),
        finish_reason=_finish_reason(row.get("finish_reason")),
    )


def _turns(row: dict[str, Any]) -> list[Turn]:
    if row.get("messages") is not None:
        return _parse_turns(row["messages"], "messages", "role", "content", ROLES)
    if row.get("conversations") is not None:
        return _parse_turns(
            row["conversations"], "conversations", "from", "value", SHAREGPT_ROLES
        )
    if row.get("prompt") is None:
        raise RowError(
            f"expected {FORMS}, found the keys {shown(sorted(map(str, row)))}"
        )
    if isinstance(row["prompt"], list):
        raise RowError(
            f"prompt: expected text, found {shown(row['prompt'])}; put turns under"
            " `messages`"
        )
    return [Turn(role="user", text=_text(row["prompt"], "prompt"))]


def _parse_turns(
    values: object, field: str, role_key: str, text_key: str, roles: dict[str, str]
) -> list[Turn]:
    if not isinstance(values, list):
        raise RowError(f"{field}: expected a list of turns, found {shown(values)}")
    turns = []
    for index, value in enumerate(values):
        name = f"{field}[{index}]"
        if not isinstance(value, dict):
            raise RowError(
                f"{name}: expected an object with `{role_key}` and `{text_key}`, "
                f"found {shown(value)}"
            )
        role = value.get(role_key)
        if not isinstance(role, str) or role not in roles:
            raise RowError(
                f"{name}.{role_key}: expected one of {', '.join(roles)}, found"
                f" {shown(role)}"
            )
        text = _text(value.get(text_key), f"{name}.{text_key}")
        turns.append(Turn(role=roles[role], text=text))
    return turns


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{field}: expected text, found {shown(value)}")
    try:
        # Half a surrogate pair would only fail later, inside the tokenizer.
        value.encode()
    except UnicodeEncodeError:
        raise RowError(
            f"{field}: half a surrogate pair in {shown(value)}; fix its encoding"
        ) from None
    return value


def _optional_text(row: dict[str, Any], field: str) -> str | None:
    """Return the stripped text of a field; None where it is missing or blank."""
    value = row.get(field)
    return None if value is None else _text(value, field).strip() or None


def _prompt_id(row: dict[str, Any], default_id: str) -> str:
    value = next(
        (row[key] for key in ("prompt_id", "id") if row.get(key) is not None),
        default_id,
    )
    # `true` is an int to Python, but no id.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise RowError(
            "prompt_id: expected printable text or a whole number, found"
            f" {shown(value)}"
        )
    return value


def _answer(value: object) -> str | None:
    """Return an answer as text: 3.0 becomes "3", and blank text becomes None."""
    if value is None:
        return None
    if isinstance(value, str):
        return _text(value, "answer").strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    # A column of whole numbers with a gap is often stored as floats.
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    raise RowError(f"answer: expected text or a number, found {shown(value)}")


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


def shown(value: object) -> str:
    """Return `value` as Python writes it, shortened; lone surrogates are escaped."""
    text = repr(value[:SHOWN_CHARS] if isinstance(value, str | bytes) else value)
    if len(text) > SHOWN_CHARS or (
        isinstance(value, str | bytes) and len(value) > SHOWN_CHARS
    ):
        return f"{text[:SHOWN_CHARS]}..."
    return text


__all__ = ["FORMS", "PromptRecord", "RowError", "Turn", "parse_row", "shown"]
