"""A step's recorded rollouts -> the blocks that the page reads.

Axes: N response tokens, R rollouts.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from topd_ray.page.arrow import lists, numbers, starts, texts
from topd_ray.page.blocks import BlockColumn, thousandths
from topd_ray.page.grades import Grades
from topd_ray.page.tokens import TokenTexts, vocabulary

MAX_TOKENS = 20_000
"""Tokens of a response that are kept; a longer one is cut, and the page says so."""
_BEGINNING = 40
"""Tokens of the response that the list shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRollouts:
    """The rollouts of one step, graded."""

    table: pa.Table
    rollout_ids: list[str]
    prompt_ids: list[str]
    grades_R: NDArray[np.uint8]
    """RIGHT, WRONG or UNKNOWN."""
    answers: list[str]
    """The prompt's answer; "" where it has none."""


def read_rollouts(table: pa.Table, tokens: TokenTexts, grades: Grades) -> StepRollouts:
    """Return a step's rollouts with their grades."""
    prompt_ids = texts(table, "prompt_id")
    responses = table["response_ids"].to_pylist()
    graded = [
        grades.grade(prompt_id, tokens.response(ids or [])) if tokens.is_readable else 2
        for prompt_id, ids in zip(prompt_ids, responses, strict=True)
    ]
    return StepRollouts(
        table=table,
        rollout_ids=texts(table, "rollout_id"),
        prompt_ids=prompt_ids,
        grades_R=np.array(graded, np.uint8),
        answers=[grades.answer(prompt_id) for prompt_id in prompt_ids],
    )


def summary_columns(
    rollouts: StepRollouts, tokens: TokenTexts
) -> dict[str, BlockColumn]:
    """Return what the list of rollouts shows, filters and orders by."""
    table = rollouts.table
    response, lengths_R = lists(table, "response_ids", "uint32")
    losses, num_losses_R = lists(table, "token_loss", "float32")
    beginnings = _first_of_each(response, lengths_R, _BEGINNING)
    prompts, num_prompt_R = lists(table, "prompt_ids", "uint32")
    return {
        "r_rollout_ids": rollouts.rollout_ids,
        "r_prompt_ids": rollouts.prompt_ids,
        "r_right": rollouts.grades_R,
        "r_num_tokens": lengths_R.astype(np.uint32),
        "r_mean_loss": _means(losses, num_losses_R),
        "r_finish": texts(table, "finish_reason"),
        "r_beginnings": _joined(tokens, beginnings, np.minimum(lengths_R, _BEGINNING)),
        "r_questions": _joined(tokens, prompts, num_prompt_R),
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
        "policy_version": numbers(table, "policy_version", "int32"),
        "num_own": numbers(table, "num_own", "uint32"),
        "num_prompt": num_prompt_R.astype(np.uint32),
        "prompt": prompts,
        "num_tokens": kept_R.astype(np.uint32),
        "num_left_out": (lengths_R - kept_R).astype(np.uint32),
        "response": _first_of_each(response, lengths_R, MAX_TOKENS),
        "takeover_position": numbers(table, "takeover_position", "int32", missing=-1),
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
    "StepRollouts",
    "read_rollouts",
    "rollout_columns",
    "summary_columns",
]
