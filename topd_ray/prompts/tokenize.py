"""Records -> token ids, once, with the student's chat template; what does not fit is named."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from topd_ray.errors import UserError
from topd_ray.messages import Ints
from topd_ray.prompts.read import PromptRecord

DropReason = Literal["empty", "too_long"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPrompt:
    """What is kept of a record for the whole run."""

    prompt_id: str
    token_ids_P: Ints
    answer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedPrompt:
    """A record that never enters the run, and why."""

    prompt_id: str
    reason: DropReason
    detail: str


def tokenize_records(
    records: Iterable[PromptRecord], *, folder: Path, max_tokens: int
) -> tuple[list[TokenizedPrompt], list[DroppedPrompt]]:
    """Apply the chat template of the model in `folder`, with its thinking mode off (as the paper).

    Dropped are prompts without any text of a user and prompts of more than `max_tokens` tokens.
    Raises UserError where nothing is left, or where the folder's template refuses a prompt.
    """
    tokenizer = _load_tokenizer(folder)
    kept: list[TokenizedPrompt] = []
    dropped: list[DroppedPrompt] = []
    for record in records:
        outcome = _tokenize(record, tokenizer, folder=folder, max_tokens=max_tokens)
        if isinstance(outcome, DroppedPrompt):
            dropped.append(outcome)
        else:
            kept.append(outcome)
    if not kept:
        raise UserError(_nothing_left(dropped))
    return kept, dropped


def _tokenize(
    record: PromptRecord, tokenizer: Any, *, folder: Path, max_tokens: int
) -> TokenizedPrompt | DroppedPrompt:
    if not any(turn.role == "user" and turn.text.strip() for turn in record.turns):
        return DroppedPrompt(
            prompt_id=record.prompt_id, reason="empty", detail="no text of a user in it"
        )
    token_ids = _apply_template(record, tokenizer, folder)
    if len(token_ids) > max_tokens:
        return DroppedPrompt(
            prompt_id=record.prompt_id,
            reason="too_long",
            detail=f"{len(token_ids)} tokens, prompts.max_tokens={max_tokens}",
        )
    return TokenizedPrompt(
        prompt_id=record.prompt_id,
        token_ids_P=np.array(token_ids, dtype=np.int32),
        answer=record.answer,
    )


def _apply_template(record: PromptRecord, tokenizer: Any, folder: Path) -> list[int]:
    from jinja2 import TemplateError

    try:
        ids: list[int] = tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.text} for turn in record.turns],
            tokenize=True,
            return_dict=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
    except TemplateError as error:
        raise UserError(
            f"prompt {record.prompt_id!r}: the chat template of {folder} refuses it: {error}"
        ) from None
    return ids


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: no usable tokenizer: {first_line}") from None
    if not tokenizer.chat_template:
        raise UserError(
            f"{folder}: its tokenizer has no chat template; start from a chat model or add "
            "chat_template.jinja"
        )
    return tokenizer


def _nothing_left(dropped: list[DroppedPrompt]) -> str:
    if not dropped:
        return "no prompts to tokenise"
    counts = Counter(drop.reason for drop in dropped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    first = dropped[0]
    return (
        f"all {len(dropped)} prompts were dropped ({reasons}), e.g. {first.prompt_id!r}: "
        f"{first.detail}; raise prompts.max_tokens or check the data"
    )
