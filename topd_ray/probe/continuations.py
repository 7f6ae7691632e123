"""The teacher's near future: K tokens from every candidate's prefix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topd_ray.config import ProbeConfig
from topd_ray.engines.protocols import GenerationEngine, GenerationRequest
from topd_ray.messages import PAD, CandidateSet, Ints
from topd_ray.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """What the teacher would say, and how much of the prefixes its engine knew
    already.
    """

    windows: list[Ints]
    """One (W, K) array a rollout, in the order of its positions; PAD behind the end."""
    num_prefix_tokens: int
    num_cached_tokens: int


def continue_from(
    engine: GenerationEngine,
    candidates: Sequence[CandidateSet],
    config: ProbeConfig,
    *,
    run_seed: int,
) -> Continued:
    """D4: decode from the teacher's own prompt and the student's y_<t, all windows
    together.

    Greedy unless a temperature is set; the draw depends on rollout and position alone.
    """
    requests = [
        _request(found, int(t), config, run_seed)
        for found in candidates
        for t in found.positions_W
    ]
    answers = {answer.request_id: answer for answer in engine.generate(requests)}
    in_order = iter(requests)
    return Continued(
        windows=[
            ragged(
                [
                    answers[next(in_order).request_id].token_ids_N
                    for _ in found.positions_W
                ],
                width=config.window,
            )
            for found in candidates
        ],
        num_prefix_tokens=sum(len(request.prompt_ids) for request in requests),
        num_cached_tokens=sum(answer.num_cached_tokens for answer in answers.values()),
    )


def ragged(sequences: Sequence[Ints], *, width: int) -> Ints:
    """Sequences of different lengths as rows of one array, PAD behind the end of
    each.
    """
    padded_WK = np.full((len(sequences), width), PAD, dtype=np.int32)
    for row, sequence in enumerate(sequences):
        padded_WK[row, : len(sequence)] = sequence
    return padded_WK


def _request(
    found: CandidateSet, position: int, config: ProbeConfig, run_seed: int
) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"{found.rollout_id}@{position}",
        prompt_ids=np.concatenate(
            [found.teacher_prompt_ids_P, found.response_ids_N[:position]]
        ),
        max_tokens=_num_tokens(found, position, config),
        temperature=config.teacher_temperature,
        top_p=config.teacher_top_p,
        seed=derive_seed(run_seed, found.rollout_id, position, "probe"),
        num_top=0,
    )


def _num_tokens(found: CandidateSet, position: int, config: ProbeConfig) -> int:
    """K; no more than the student had, where the token limit cut its own window short.

    Otherwise a student that says what its teacher says would seem to diverge at its
    limit. A fresh window has no such limit: only the end of the response makes it
    shorter than K.
    """
    if config.student == "resample" or not found.truncated:
        return config.window
    return min(config.window, len(found.response_ids_N) - position)


__all__ = ["Continued", "continue_from", "ragged"]
