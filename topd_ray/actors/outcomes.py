"""Whether a response of the teacher has the right answer, and is wanted for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from topd_ray.evaluation.answers import extract_boxed, same_answer
from topd_ray.messages import CandidateSet
from topd_ray.records.receipts import Span, TakeoverReceipt
from topd_ray.takeover import Takeovers

Keep = Literal["all", "pass", "fail_to_pass"]


@dataclass(frozen=True, slots=True)
class TakeoverOutcome:
    """What the teacher's continuation of one rollout is worth."""

    unwanted: str | None = None
    """Why it is not trained on; None where it is, or where there is no fork."""
    right_before: bool | None = None
    """Whether the student's response was right; None where the answer is unknown, or
    the student was stopped.
    """
    right_after: bool | None = None
    """The same of the response with the continuation in it."""


def is_right(text: str, answer: str) -> bool:
    """Return whether the last \\boxed{...} of a text is the answer."""
    return same_answer(extract_boxed(text), answer)


def unwanted(
    keep: Keep, *, what: str, before: str, after: str, answer: str | None
) -> str | None:
    """Return why a response is left out; None where it is kept.

    Args:
        keep: Which responses are trained on.
        what: What the response is called, for the reason.
        before: Text of the student's attempt.
        after: Text of the response.
        answer: The right answer, where it is known.
    """
    if keep == "all":
        return None
    # Dropped and counted rather than kept: an unjudged response may be wrong.
    if answer is None:
        return f"no answer to judge the {what} by"
    if not is_right(after, answer):
        return f"{what} is wrong"
    if keep == "fail_to_pass" and is_right(before, answer):
        return "attempt was right"
    return None


def takeover_receipt(
    rollouts: Sequence[CandidateSet],
    continued: Takeovers,
    outcomes: Sequence[TakeoverOutcome],
    judged_values: tuple[tuple[str, tuple[float, ...]], ...],
    span: Span,
) -> TakeoverReceipt:
    """Return the counts of a chunk; all sequences are rollout by rollout."""
    dropped = []
    lengths = []
    num_taken_over = 0
    num_own = 0
    num_tokens = 0
    for rollout, takeover, outcome in zip(
        rollouts, continued.takeovers, outcomes, strict=True
    ):
        num_response = len(rollout.response_ids_N)
        if takeover is not None:
            num_taken_over += 1
            num_own += takeover.position
            num_tokens += len(takeover.response_ids_L)
            num_response = takeover.position + len(takeover.response_ids_L)
        if outcome.unwanted is None:
            lengths.append(len(rollout.prompt_ids_P) + num_response)
        else:
            dropped.append((rollout.rollout_id, outcome.unwanted))
    before = [o.right_before for o in outcomes if o.right_before is not None]
    after = [o.right_after for o in outcomes if o.right_after is not None]
    return TakeoverReceipt(
        dropped=tuple(dropped),
        num_sequence_tokens=tuple(lengths),
        num_taken_over=num_taken_over,
        num_own=num_own,
        num_judged=len(after),
        num_right=sum(after),
        num_judged_before=len(before),
        num_right_before=sum(before),
        num_tokens=num_tokens,
        num_prefix_tokens=continued.num_prefix_tokens,
        num_cached_tokens=continued.num_cached_tokens,
        judged_values=judged_values,
        span=span,
    )
