"""Decode the teacher's continuations: K tokens from the prefix of each candidate.

Axes as in messages.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from topd_ray.config import ProbeConfig
from topd_ray.engines.protocols import GenerationEngine, GenerationRequest
from topd_ray.messages import PAD, CandidateSet, Ints
from topd_ray.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuations:
    """The teacher's continuations, and how much of the prefixes was in its KV cache."""

    windows: list[Ints]
    """One (W, K) array a rollout, in the order of its positions; PAD behind the end."""
    num_prefix_tokens: int
    """Number of tokens of all prefixes together."""
    num_cached_tokens: int
    """How many of them the engine had in its KV cache."""


def continue_from(
    engine: GenerationEngine,
    candidates: Sequence[CandidateSet],
    config: ProbeConfig,
    *,
    run_seed: int,
) -> Continuations:
    """Decode the teacher's K tokens T_0..T_{K-1} from each prefix x, y_<t.

    Decision D4, for section 3 of the paper ("Starting from this same prefix"): greedy
    unless a temperature is set. x is the teacher's prompt, y_<t the student's response
    before the candidate. All windows are decoded together.

    Args:
        engine: Decodes as the teacher.
        candidates: The positions t, one set a rollout.
        config: `window` is K; temperature and top_p of the teacher.
        run_seed: With rollout id and position, it decides each window's draw, so a
            repeated call returns the same tokens.

    Returns:
        The windows of each rollout, in the order of `candidates`. A window that ends
        early includes its EOS.
    """
    requests = [
        [
            _request(candidate_set, int(t), config, run_seed)
            for t in candidate_set.positions_W
        ]
        for candidate_set in candidates
    ]
    all_requests = list(chain.from_iterable(requests))
    # The engine yields answers in the order in which they finish.
    answers = {answer.request_id: answer for answer in engine.generate(all_requests)}
    return Continuations(
        windows=[
            ragged(
                [
                    answers[request.request_id].token_ids_N
                    for request in rollout_requests
                ],
                width=config.window,
            )
            for rollout_requests in requests
        ],
        num_prefix_tokens=sum(len(request.prompt_ids) for request in all_requests),
        num_cached_tokens=sum(answer.num_cached_tokens for answer in answers.values()),
    )


def ragged(sequences: Sequence[Ints], *, width: int) -> Ints:
    """Return sequences of different lengths as the rows of one array.

    Args:
        sequences: W arrays of at most `width` ids.
        width: K, the number of columns.

    Returns:
        Ids of shape (W, K), PAD behind the end of each row.
    """
    padded_WK = np.full((len(sequences), width), PAD, dtype=np.int32)
    for row, sequence in enumerate(sequences):
        padded_WK[row, : len(sequence)] = sequence
    return padded_WK


def _request(
    candidate_set: CandidateSet, position: int, config: ProbeConfig, run_seed: int
) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"{candidate_set.rollout_id}@{position}",
        prompt_ids=np.concatenate(
            [
                candidate_set.teacher_prompt_ids_P,
                candidate_set.response_ids_N[:position],
            ]
        ),
        max_tokens=_num_tokens(candidate_set, position, config),
        temperature=config.teacher_temperature,
        top_p=config.teacher_top_p,
        seed=derive_seed(run_seed, candidate_set.rollout_id, position, "probe"),
        num_top=0,
    )


def _num_tokens(candidate_set: CandidateSet, position: int, config: ProbeConfig) -> int:
    """Return how many tokens the teacher may write: K, or fewer at the token limit."""
    # A response that was cut off has a short window at its end. A teacher that writes
    # the same tokens and more would seem to diverge there, so it gets the same length.
    # A fresh window of the student is not cut off: it has K tokens, or ended by itself.
    if config.student == "resample" or not candidate_set.truncated:
        return config.window
    return min(config.window, len(candidate_set.response_ids_N) - position)


__all__ = ["Continuations", "continue_from", "ragged"]
