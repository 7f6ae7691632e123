"""A step's recorded rollouts -> the blocks that the page reads.

Axes: N response tokens, R rollouts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from topd_ray.page.arrow import lists, numbers, starts, texts
from topd_ray.page.blocks import BlockColumn, thousandths
from topd_ray.page.grades import UNKNOWN, Grades
from topd_ray.page.tokens import TokenTexts, vocabulary

MAX_TOKENS = 20_000
"""Tokens of a response that are kept; a longer one is cut, and the page says so."""
_BEGINNING = 40
"""Tokens of the response that the list shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forks:
    """Where the teacher took over, of every rollout."""

    position_R: NDArray[np.int32]
    """Where its first token stands; -1 in a rollout that was left alone, which has 0,
    nan or UNKNOWN in the other columns.
    """
    own_R: NDArray[np.uint32]
    """The student's token there."""
    teachers_R: NDArray[np.uint32]
    """The teacher's."""
    logp_R: NDArray[np.float32]
    """Of the student's token, under the student, nats."""
    logq_R: NDArray[np.float32]
    """Of the student's token, under the teacher, nats."""
    ended_R: NDArray[np.uint8]
    """The grade with the teacher's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRollouts:
    """The rollouts of one step, graded."""

    table: pa.Table
    rollout_ids: list[str]
    prompt_ids: list[str]
    grades_R: NDArray[np.uint8]
    """RIGHT, WRONG or UNKNOWN of the student's own response."""
    answers: list[str]
    """The prompt's answer; "" where it has none."""
    forks: Forks


def read_rollouts(table: pa.Table, tokens: TokenTexts, grades: Grades) -> StepRollouts:
    """Return a step's rollouts with their grades."""
    prompt_ids = texts(table, "prompt_id")
    responses = _each(table, "response_ids", "uint32")

    def graded(ids_of_each: Iterable[NDArray[Any] | None]) -> NDArray[np.uint8]:
        found = [
            UNKNOWN
            if ids is None or not tokens.is_readable
            else grades.grade(prompt_id, tokens.response(ids.tolist()))
            for prompt_id, ids in zip(prompt_ids, ids_of_each, strict=True)
        ]
        return np.array(found, np.uint8)

    # A response that was stopped at its fork has no answer: it is not graded.
    ends = (
        None if reason == "cut" else ids
        for reason, ids in zip(texts(table, "finish_reason"), responses, strict=True)
    )
    return StepRollouts(
        table=table,
        rollout_ids=texts(table, "rollout_id"),
        prompt_ids=prompt_ids,
        grades_R=graded(ends),
        answers=[grades.answer(prompt_id) for prompt_id in prompt_ids],
        forks=_forks(table, responses, graded),
    )


def _forks(
    table: pa.Table,
    responses: Sequence[NDArray[Any]],
    graded: Callable[[Iterable[NDArray[Any] | None]], NDArray[np.uint8]],
) -> Forks:
    position_R = numbers(table, "takeover_position", "int32", missing=-1)
    first_R = np.minimum(position_R, 0)  # -1 stays: no takeover, no first token
    takeovers = _each(table, "takeover_ids", "uint32")
    logp = _each(table, "logp", "float32")
    logq = _each(table, "logq", "float32")
    spliced = (
        None if at < 0 else np.concatenate([own[:at], end])
        for at, own, end in zip(position_R, responses, takeovers, strict=True)
    )
    return Forks(
        position_R=position_R,
        own_R=_at(responses, position_R, 0).astype(np.uint32),
        teachers_R=_at(takeovers, first_R, 0).astype(np.uint32),
        logp_R=_at(logp, position_R, np.nan).astype(np.float32),
        logq_R=_at(logq, position_R, np.nan).astype(np.float32),
        ended_R=graded(spliced),
    )


def _each(table: pa.Table, name: str, dtype: str) -> list[NDArray[Any]]:
    """Return each list of a column; a null is empty."""
    values, lengths_R = lists(table, name, dtype)
    return [values[a:b] for a, b in pairwise(starts(lengths_R))]


def _at(
    rows: Sequence[NDArray[Any]], position_R: NDArray[np.int32], missing: float
) -> NDArray[Any]:
    """Return a value of each row; `missing` at -1 and behind the row's end."""
    return np.array(
        [
            row[at] if 0 <= at < len(row) else missing
            for at, row in zip(position_R, rows, strict=True)
        ]
    )


def summary_columns(
    rollouts: StepRollouts, tokens: TokenTexts
) -> dict[str, BlockColumn]:
    """Return what the list of rollouts shows, filters and orders by."""
    table = rollouts.table
    response, lengths_R = lists(table, "response_ids", "uint32")
    losses, num_losses_R = lists(table, "token_loss", "float32")
    beginnings = _first_of_each(response, lengths_R, _BEGINNING)
    forks = rollouts.forks
    taken_R = (forks.position_R >= 0).astype(np.int64)
    own = forks.own_R[taken_R > 0]
    teachers = forks.teachers_R[taken_R > 0]
    return {
        "r_rollout_ids": rollouts.rollout_ids,
        "r_prompt_ids": rollouts.prompt_ids,
        "r_right": rollouts.grades_R,
        "r_num_tokens": lengths_R.astype(np.uint32),
        "r_mean_loss": _means(losses, num_losses_R),
        "r_finish": texts(table, "finish_reason"),
        "r_beginnings": _joined(tokens, beginnings, np.minimum(lengths_R, _BEGINNING)),
        "r_questions": [
            tokens.question(ids) for ids in _each(table, "prompt_ids", "uint32")
        ],
        "r_takeover": forks.position_R,
        "r_own_words": _joined(tokens, own, taken_R),
        "r_teacher_words": _joined(tokens, teachers, taken_R),
    }


def rollout_columns(
    rollouts: StepRollouts, tokens: TokenTexts
) -> dict[str, BlockColumn]:
    """Return every token of the rollouts, with loss and log-probabilities."""
    table = rollouts.table
    prompts, num_prompt_R = lists(table, "prompt_ids", "uint32")
    response, lengths_R = lists(table, "response_ids", "uint32")
    kept_R = np.minimum(lengths_R, MAX_TOKENS)
    takeover, num_takeover_R = lists(table, "takeover_ids", "uint32")
    kept_takeover_R = np.minimum(num_takeover_R, MAX_TOKENS)
    columns: dict[str, Any] = {
        "rollout_ids": rollouts.rollout_ids,
        "prompt_ids": rollouts.prompt_ids,
        "finish": texts(table, "finish_reason"),
        "answers": rollouts.answers,
        "right": rollouts.grades_R,
        "ended": rollouts.forks.ended_R,
        "policy_version": numbers(table, "policy_version", "int32"),
        "num_own": numbers(table, "num_own", "uint32"),
        "num_prompt": num_prompt_R.astype(np.uint32),
        "prompt": prompts,
        "num_tokens": kept_R.astype(np.uint32),
        "num_left_out": (lengths_R - kept_R).astype(np.uint32),
        "response": _first_of_each(response, lengths_R, MAX_TOKENS),
        "takeover_position": rollouts.forks.position_R,
        "num_takeover": kept_takeover_R.astype(np.uint32),
        "takeover": _first_of_each(takeover, num_takeover_R, MAX_TOKENS),
    }
    for name, source in (("loss", "token_loss"), ("logp", "logp"), ("logq", "logq")):
        values, counts_R = lists(table, source, "float32")
        kept = _first_of_each(values, counts_R, MAX_TOKENS)
        columns[name] = thousandths(kept)
        columns[f"num_{name}"] = np.minimum(counts_R, MAX_TOKENS).astype(np.uint32)
    ids = [columns["prompt"], columns["response"], columns["takeover"]]
    return columns | vocabulary(tokens, ids)


def _first_of_each(
    values: NDArray[Any], lengths_R: NDArray[np.int64], count: int
) -> NDArray[Any]:
    """Return the first `count` values of each list, one list after the other."""
    if not len(values) or int(lengths_R.max(initial=0)) <= count:
        return values
    begins = np.repeat(starts(lengths_R)[:-1], lengths_R)
    is_kept = np.arange(len(values)) - begins < count
    return values[is_kept]


def _means(values: NDArray[np.float32], lengths_R: NDArray[np.int64]) -> BlockColumn:
    begins = starts(lengths_R)
    means = [
        float(np.nanmean(part)) if len(part) and not np.isnan(part).all() else np.nan
        for part in (values[a:b] for a, b in pairwise(begins))
    ]
    return np.array(means, np.float32)


def _joined(
    tokens: TokenTexts, ids: NDArray[Any], lengths_R: NDArray[np.int64]
) -> list[str]:
    pieces = tokens.texts(ids)
    begins = starts(lengths_R).tolist()
    return ["".join(pieces[a:b]) for a, b in pairwise(begins)]


__all__ = [
    "MAX_TOKENS",
    "Forks",
    "StepRollouts",
    "read_rollouts",
    "rollout_columns",
    "summary_columns",
]
