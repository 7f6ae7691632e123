"""Text of a model folder's chat template, and the token with which it ends a turn."""

from pathlib import Path
from typing import Any

from topd_ray.models.files import read_json, read_text
from topd_ray.models.vocabulary import TOKENIZER

TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Rendered as what the assistant says; no template would hold it.
_SPOKEN = "spoken5b1f"


def chat_template(folder: Path) -> str | None:
    """Return the text of the folder's chat template; None where it has none."""
    if (folder / TEMPLATE).is_file():
        return read_text(folder / TEMPLATE)
    template = tokenizer_config(folder).get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [entry for entry in template if isinstance(entry, dict)]
        defaults = [entry for entry in named if entry.get("name") == "default"]
        template = defaults[0].get("template") if defaults else None
    return template if isinstance(template, str) else None


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json; nothing where there is no such file."""
    path = folder / TOKENIZER_CONFIG
    return read_json(path) if path.is_file() else {}


def named_token(folder: Path, name: str) -> str | None:
    """Return a token that tokenizer_config.json names, such as `eos_token`."""
    token = tokenizer_config(folder).get(name)
    if isinstance(token, dict):  # an AddedToken, written out
        token = token.get("content")
    return token if isinstance(token, str) else None


def end_of_turn(folder: Path) -> str | None:
    """Return the control token that the template writes behind an assistant's turn.

    None where the folder has no template, or where none of the tokenizer's control
    tokens follows a turn. The token may be the one that begins the user's next turn,
    where the template writes no other.
    """
    template = chat_template(folder)
    if template is None:
        return None
    control = _control_tokens(folder)
    turns = [("user", "a"), ("assistant", _SPOKEN), ("user", "b")]
    # Without the next turn first: some templates end the last turn in another way.
    for count in (2, 3):
        text = _rendered(folder, template, turns[:count])
        _, _, behind = text.partition(_SPOKEN)
        found = [token for token in control if token in behind]
        if found:
            # The longer one where two begin at one place.
            return min(found, key=lambda token: (behind.index(token), -len(token)))
    return None


def _control_tokens(folder: Path) -> set[str]:
    """Return the special tokens of tokenizer.json, and the eos_token."""
    added = read_json(folder / TOKENIZER).get("added_tokens") or []
    control = {str(token["content"]) for token in added if token.get("special")}
    eos = named_token(folder, "eos_token")
    return control if eos is None else control | {eos}


def _rendered(folder: Path, template: str, turns: list[tuple[str, str]]) -> str:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    names = {name: named_token(folder, name) for name in ("bos_token", "eos_token")}
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        texts, _ = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            # The date is of no interest here, and a template may not read the clock.
            strftime_now=lambda _: "",
            **{name: token or "" for name, token in names.items()},
        )
    # A template that refuses these turns refuses those of a prompt too, or ends them in
    # a way that cannot be seen here. Either way the prompt's own error says more.
    except (TemplateError, TypeError, ValueError):
        return ""
    text: str = texts[0]
    return text


__all__ = [
    "TEMPLATE",
    "TOKENIZER_CONFIG",
    "chat_template",
    "end_of_turn",
    "named_token",
]
