"""Turn records into prompts of token ids, once; drop by name what a run cannot use."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from topd_ray.contexts import ChatTemplate, DoesNotFitError, TeacherPrompts
from topd_ray.errors import UserError
from topd_ray.messages import Prompt
from topd_ray.prompts.given import GivenResponse, ResponseReader
from topd_ray.prompts.record import PromptRecord
from topd_ray.prompts.teacher_side import TeacherSide

Truncated = Literal["keep", "drop"]
DropReason = Literal[
    "empty",
    "control_token",
    "too_long",
    "no_response",
    "truncated_response",
    "no_reference",
]
WAYS_OUT: dict[DropReason, str] = {
    "empty": "check the data",
    "control_token": "rewrite the text, e.g. with a blank inside the token",
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
    chat: ChatTemplate,
    max_tokens: int,
    responses: ResponseReader | None = None,
    truncated: Truncated = "drop",
    teacher: TeacherPrompts | None = None,
    side: TeacherSide | None = None,
) -> tuple[list[Prompt], list[DroppedPrompt]]:
    """Apply the student's chat template; return kept and dropped.

    A prompt is dropped where it has no text of a user, a control token in its text, or
    more than `max_tokens` tokens; with `responses`, where it has no response, or a
    truncated one and `truncated` is "drop"; with a `teacher`, where it lacks the
    reference that the teacher's context shows. With a `side`, a prompt gets the ids
    that a teacher reads by another template. Positions count the prompts kept.
    Raises UserError where no prompt is left, or where a template refuses a prompt.
    """
    kept: list[Prompt] = []
    dropped: list[DroppedPrompt] = []
    for record in records:
        outcome = _tokenize(record, chat, max_tokens=max_tokens)
        if isinstance(outcome, Prompt) and responses is not None:
            outcome = _with_response(outcome, record, responses, chat, truncated)
        if isinstance(outcome, Prompt) and side is not None:
            outcome = _with_side(outcome, record, side)
        # Last, because a teacher's prompt costs the most, and a dropped prompt needs
        # none.
        if isinstance(outcome, Prompt) and teacher is not None:
            outcome = _with_context(outcome, teacher, chat)
        if isinstance(outcome, DroppedPrompt):
            dropped.append(outcome)
        else:
            kept.append(replace(outcome, position=len(kept)))
    if not kept:
        raise UserError(_nothing_left(dropped))
    return kept, dropped


def _tokenize(
    record: PromptRecord, chat: ChatTemplate, *, max_tokens: int
) -> Prompt | DroppedPrompt:
    user_turns = [turn for turn in record.turns if turn.role == "user"]
    if not any(turn.text.strip() for turn in user_turns):
        return _dropped(record.prompt_id, "empty", "no text of a user in it")
    for turn in record.turns:
        token = chat.control_token(turn.text)
        if token is not None:
            return _dropped(
                record.prompt_id, "control_token", _in_the(turn.role, token)
            )
    token_ids = chat.ids(record.turns, prompt_id=record.prompt_id)
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
    chat: ChatTemplate,
    truncated: Truncated,
) -> Prompt | DroppedPrompt:
    # Ids are what a decoder wrote; text would become control tokens by accident.
    if record.response is not None and record.response_ids is None:
        token = chat.control_token(responses.body(record.response))
        if token is not None:
            detail = _in_the("response", token)
            return _dropped(prompt.prompt_id, "control_token", detail)
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


def _with_side(
    prompt: Prompt, record: PromptRecord, side: TeacherSide
) -> Prompt | DroppedPrompt:
    prompt = side.read(prompt, record.turns)
    ids = prompt.teacher_ids_P
    if ids is not None and len(ids) > side.max_tokens:
        detail = (
            f"{len(ids)} tokens by the teacher's own template, prompts.max_tokens +"
            f" prompts.max_form_tokens={side.max_tokens}"
        )
        return _dropped(prompt.prompt_id, "too_long", detail)
    return prompt


def _with_context(
    prompt: Prompt, teacher: TeacherPrompts, chat: ChatTemplate
) -> Prompt | DroppedPrompt:
    """Return the prompt with the teacher's own prompt, or drop it.

    A refinement prompt is written when the attempt exists; here it is only checked that
    it fits without one.
    """
    if teacher.needs_reference and prompt.reference is None:
        return _dropped(
            prompt.prompt_id, "no_reference", f"context {teacher.context} needs one"
        )
    token = chat.control_token(prompt.reference or "")
    if teacher.needs_reference and token is not None:
        detail = _in_the("reference", token)
        return _dropped(prompt.prompt_id, "control_token", detail)
    try:
        token_ids_P = teacher.build(prompt)
    except DoesNotFitError as error:
        return _dropped(prompt.prompt_id, "too_long", str(error))
    return (
        prompt if teacher.needs_attempt else replace(prompt, teacher_ids_P=token_ids_P)
    )


def _in_the(part: str, token: str) -> str:
    return f"{token!r} in the text of the {part} would become a control token"


def _dropped(prompt_id: str, reason: DropReason, detail: str) -> DroppedPrompt:
    return DroppedPrompt(prompt_id=prompt_id, reason=reason, detail=detail)


def count_dropped(dropped: Sequence[DroppedPrompt]) -> str:
    """Return how many prompts were dropped for which reason, and one of them."""
    if not dropped:
        return "0 dropped"
    counts = Counter(drop.reason for drop in dropped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    first = dropped[0]
    return (
        f"{len(dropped):,} dropped: {reasons}, e.g. {first.prompt_id!r}, {first.detail}"
    )


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


__all__ = ["DroppedPrompt", "count_dropped", "tokenize_records"]
