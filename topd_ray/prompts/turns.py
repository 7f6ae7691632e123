"""Turns of a conversation, in the spellings of OpenAI, ShareGPT and chat data sets."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from topd_ray.prompts.shown import RowError, shown

ROLES = {
    "system": "system",
    # OpenAI's later name for it; most templates leave out a role they do not know.
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Roles by the names that data give them, in lower case."""
SHOWN_ROLES = "system, developer, user, assistant, human, gpt"
KEYS = (("role", "content"), ("from", "value"))
"""Keys of a turn: role and text."""
UNRENDERED = {
    "tool_calls": "calls of tools are not rendered; write them into its text",
    "function_call": "calls of tools are not rendered; write them into its text",
    "reasoning_content": (
        "only `content` is rendered; write the reasoning into it, as"
        " <think>…</think> or however the model thinks"
    ),
}
"""Keys of a turn that would be lost without a word."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    text: str


def parse_turns(values: object, field: str) -> list[Turn]:
    """Return the turns of a list of objects. Raises RowError.

    A system turn without text is left out: it stands for "no system prompt".
    """
    if not isinstance(values, list):
        raise RowError(f"{field}: expected a list of turns, found {shown(values)}")
    turns = []
    for index, value in enumerate(values):
        turn = _turn(value, f"{field}[{index}]")
        if turn is not None:
            turns.append(turn)
    return turns


def _turn(value: object, name: str) -> Turn | None:
    if not isinstance(value, Mapping):
        raise RowError(
            f"{name}: expected an object with `role` and `content`, or `from` and"
            f" `value`, found {shown(value)}"
        )
    role_key, text_key = _keys(value, name)
    for key, why in UNRENDERED.items():
        if value.get(key):
            raise RowError(f"{name}.{key}: {why}; found {shown(value[key])}")
    role = _role(value.get(role_key), f"{name}.{role_key}")
    content = value.get(text_key)
    if content is None and role == "system":
        return None
    return Turn(role=role, text=_content(content, f"{name}.{text_key}"))


def _keys(value: Mapping[str, Any], name: str) -> tuple[str, str]:
    present = [keys for keys in KEYS if value.get(keys[0]) is not None]
    if len(present) > 1:
        raise RowError(
            f"{name}: holds both `role` and `from`, found {shown(dict(value))}; drop"
            " one of them"
        )
    return present[0] if present else KEYS[0]


def _role(value: object, name: str) -> str:
    role = ROLES.get(value.strip().lower()) if isinstance(value, str) else None
    if role is not None:
        return role
    way_out = ""
    if isinstance(value, str) and value.lower() in ("tool", "function", "observation"):
        way_out = "; answers of tools are not rendered: make them turns of the user"
    raise RowError(
        f"{name}: expected one of {SHOWN_ROLES}, found {shown(value)}{way_out}"
    )


def _content(value: object, field: str) -> str:
    """Return text, or the parts of `[{"type": "text", "text": ...}]` in a row."""
    if not isinstance(value, list):
        return parse_text(value, field)
    texts = []
    for index, part in enumerate(value):
        name = f"{field}[{index}]"
        if isinstance(part, str):
            texts.append(parse_text(part, name))
        elif isinstance(part, Mapping) and part.get("type") == "text":
            texts.append(parse_text(part.get("text"), f"{name}.text"))
        else:
            raise RowError(
                f'{name}: expected {{"type": "text", "text": …}}, found {shown(part)};'
                " a run reads text only"
            )
    return "".join(texts)


def parse_text(value: object, field: str) -> str:
    """Return text as it is. Raises RowError for anything else."""
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


__all__ = ["Turn", "parse_text", "parse_turns"]
