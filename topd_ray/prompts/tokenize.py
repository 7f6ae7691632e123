"""Turn records into prompts of token ids, once; drop by name what a run cannot use."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from topd_ray.contexts import DoesNotFitError, TeacherPrompts, chat_ids, load_tokenizer
from topd_ray.errors import UserError
from topd_ray.messages import Prompt
from topd_ray.prompts.given import GivenResponse, ResponseReader
from topd_ray.prompts.record import PromptRecord

Truncated = Literal["keep", "drop"]
DropReason = Literal[
    "empty", "too_long", "no_response", "truncated_response", "no_reference"
]
WAYS_OUT: dict[DropReason, str] = {
    "empty": "check the data",
    "too_long": "raise prompts.max_tokens or check the data",
    "no_response": (
        "`topd generate CONFIG --out FILE` writes the teacher's responses to a file for"
        " prompts.path; or set objective.trajectory=rollout"
    ),
    "truncated_response": (
        "raise the limit (--max-tokens of `topd generate`,"
        " rollout.max_response_tokens), or set prompts.truncated=keep"
    ),
    "no_reference": (
        "add a `reference` (or `solution`) to the rows, or set an objective.context "
        "without one"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedPrompt:
    """A record that does not enter the run, and the reason."""

    prompt_id: str
    reason: DropReason
    detail: str


def tokenize_records(
    records: Iterable[PromptRecord],
    *,
    folder: Path,
    max_tokens: int,
    responses: ResponseReader | None = None,
    truncated: Truncated = "drop",
    teacher: TeacherPrompts | None = None,
) -> tuple[list[Prompt], list[DroppedPrompt]]:
    """Apply the chat template of the student in `folder`; return kept and dropped.

    A prompt is dropped where it has no text of a user or more than `max_tokens` tokens;
    with `responses`, where it has no response, or a truncated one and `truncated` is
    "drop"; with a `teacher`, where it lacks the reference that the teacher's context
    shows. Positions count the prompts kept. Raises UserError where no prompt is left,
    or where the folder's template refuses a prompt.
    """
    tokenizer = load_tokenizer(folder)
    kept: list[Prompt] = []
    dropped: list[DroppedPrompt] = []
    for record in records:
        outcome = _tokenize(record, tokenizer, max_tokens=max_tokens)
        if isinstance(outcome, Prompt) and responses is not None:
            outcome = _with_response(outcome, record, responses, truncated)
        # Last, because a teacher's prompt costs the most, and a dropped prompt needs
        # none.
        if isinstance(outcome, Prompt) and teacher is not None:
            outcome = _with_context(outcome, teacher)
        if isinstance(outcome, DroppedPrompt):
            dropped.append(outcome)
        else:
            kept.append(replace(outcome, position=len(kept)))
    if not kept:
        raise UserError(_nothing_left(dropped))
    return kept, dropped


def _tokenize(
    record: PromptRecord, tokenizer: Any, *, max_tokens: int
) -> Prompt | DroppedPrompt:
    user_turns = [turn for turn in record.turns if turn.role == "user"]
    if not any(turn.text.strip() for turn in user_turns):
        return _dropped(record.prompt_id, "empty", "no text of a user in it")
    token_ids = chat_ids(tokenizer, record.turns, prompt_id=record.prompt_id)
    if len(token_ids) > max_tokens:
        return _dropped(
            record.prompt_id,
            "too_long",
            f"{len(token_ids)} tokens, prompts.max_tokens={max_tokens}",
        )
    last = user_turns[-1]
    return Prompt(
        prompt_id=record.prompt_id,
        position=0,
        token_ids_P=np.array(token_ids, dtype=np.int32),
        answer=record.answer,
        problem=last.text,
        # By identity: an earlier turn may have the same text as the last.
        earlier_turns=tuple(
            (turn.role, turn.text) for turn in record.turns if turn is not last
        ),
        reference=record.reference,
    )


def _with_response(
    prompt: Prompt,
    record: PromptRecord,
    responses: ResponseReader,
    truncated: Truncated,
) -> Prompt | DroppedPrompt:
    response = responses.read(record)
    if response is None:
        return _dropped(
            prompt.prompt_id, "no_response", "objective.trajectory=given needs one"
        )
    if response.finish_reason == "length" and truncated == "drop":
        return _dropped(
            prompt.prompt_id,
            "truncated_response",
            _why_truncated(response, responses.max_tokens),
        )
    return replace(
        prompt,
        response_ids_N=response.token_ids_N,
        response_finish_reason=response.finish_reason,
    )


def _why_truncated(response: GivenResponse, max_tokens: int) -> str:
    if response.num_whole > max_tokens:
        return f"{response.num_whole} tokens, rollout.max_response_tokens={max_tokens}"
    return f"its {response.num_whole} tokens break off before an end (EOS)"


def _with_context(prompt: Prompt, teacher: TeacherPrompts) -> Prompt | DroppedPrompt:
    """Return the prompt with the teacher's own prompt, or drop it.

    A refinement prompt is written when the attempt exists; here it is only checked that
    it fits without one.
    """
    if teacher.needs_reference and prompt.reference is None:
        return _dropped(
            prompt.prompt_id, "no_reference", f"context {teacher.context} needs one"
        )
    try:
        token_ids_P = teacher.build(prompt)
    except DoesNotFitError as error:
        return _dropped(prompt.prompt_id, "too_long", str(error))
    return (
        prompt if teacher.needs_attempt else replace(prompt, teacher_ids_P=token_ids_P)
    )


def _dropped(prompt_id: str, reason: DropReason, detail: str) -> DroppedPrompt:
    return DroppedPrompt(prompt_id=prompt_id, reason=reason, detail=detail)


def _nothing_left(dropped: list[DroppedPrompt]) -> str:
    if not dropped:
        return "no prompts to tokenise"
    counts = Counter(drop.reason for drop in dropped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    commonest = counts.most_common(1)[0][0]
    example = next(drop for drop in dropped if drop.reason == commonest)
    return (
        f"all {len(dropped)} prompts were dropped ({reasons}), e.g."
        f" {example.prompt_id!r}: {example.detail}; {WAYS_OUT[commonest]}"
    )


__all__ = ["DroppedPrompt", "tokenize_records"]
