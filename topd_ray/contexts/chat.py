"""Turn a conversation into token ids with a model folder's tokenizer and template."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError

Turns = Iterable[tuple[str, str]]
"""(role, text), in order."""


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer.

    Raises UserError where the folder has no usable tokenizer or no chat template.
    """
    from transformers import AutoTokenizer

    try:
        # Code that comes with a model is never run.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: no usable tokenizer: {first_line}") from None
    if not tokenizer.chat_template:
        raise UserError(
            f"{folder}: its tokenizer has no chat template; start from a chat model or"
            " add chat_template.jinja"
        )
    return tokenizer


def chat_ids(tokenizer: Any, turns: Turns, *, prompt_id: str) -> list[int]:
    """Return the ids of the turns, up to where the assistant's next turn begins.

    The template's thinking mode is off, as in the paper. Raises UserError where the
    template refuses the turns; `prompt_id` names them in the error.
    """
    from jinja2 import TemplateError

    try:
        ids: list[int] = tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in turns],
            tokenize=True,
            # The default of transformers 5 is a mapping, not the ids.
            return_dict=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
    except TemplateError as error:
        raise UserError(
            f"prompt {prompt_id!r}: the chat template of {tokenizer.name_or_path}"
            f" refuses it: {error}"
        ) from None
    return ids
