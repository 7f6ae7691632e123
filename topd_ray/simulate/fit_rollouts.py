"""Decode rates and response lengths from the chunks that rollout engines sent, in two
passes.

A trace knows how many tokens a chunk had and when it was full, not how long each
rollout was. They leave an engine the shortest first, so chunks are slices of the sorted
lengths. The longest of the last chunk cannot be read off its mean; it follows from how
long that chunk took, once the rates are known from the others.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from topd_ray.config import Config
from topd_ray.records.timeline import Work
from topd_ray.simulate.rates import Decode, continuous_batching

Call = tuple[Work, float]
"""With the seconds of a core that it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedRollouts:
    """The rates of the student's engines."""

    decode: Decode
    lengths: list[int]
    """Of all rollouts, response tokens."""
    by_chunk: dict[tuple[int, int | None], list[int]]
    """The same, by step and chunk. A step that was done twice is there once."""
    prompt_tokens: int
    """Mean length of a prompt, as given."""


def fit_rollouts(
    config: Config, calls: Sequence[Call], *, prompt_tokens: int
) -> FittedRollouts:
    """Fit the seconds of a decode step and of a sequence in it; and the lengths."""
    streams = _streams(calls)
    rows: dict[int, list[list[float]]] = defaultdict(list)
    for stream in streams:
        lengths = _lengths(config, stream, None)
        steps = _by_chunk(config, lengths, Decode(step_s=1.0))
        sequences = _by_chunk(config, lengths, Decode(step_s=0.0, seq_s=1.0))
        sequences[0] += prompt_tokens * len(lengths)  # read at the cost of writing
        told = stream[:-1] or stream  # how far the last chunk reaches is not known yet
        for index, (_, spent_s) in enumerate(told):
            rows[index].append([steps[index], sequences[index], spent_s])
    # Means a chunk: the lengths of one stream are guesses, whose errors would flatten
    # the line.
    means = [np.mean(some, axis=0) for some in rows.values()]
    step_s, seq_s = least_squares([row[:2] for row in means], [row[2] for row in means])
    decode = Decode(step_s=step_s, seq_s=seq_s)
    all_lengths: list[int] = []
    by_chunk: dict[tuple[int, int | None], list[int]] = {}
    for stream in streams:
        of_stream = _lengths(config, stream, decode)
        all_lengths += of_stream
        left = iter(of_stream)
        counts = _counts(config, len(stream))
        for (work, _), count in zip(stream, counts, strict=True):
            by_chunk[work.step, work.chunk] = list(islice(left, count))
    return FittedRollouts(
        decode=decode,
        lengths=all_lengths,
        by_chunk=by_chunk,
        prompt_tokens=prompt_tokens,
    )


def least_squares(
    rows: Sequence[Sequence[float]], seconds: Sequence[float]
) -> list[float]:
    """Fit the costs of the columns, none negative."""
    costs, _ = nnls(np.array(rows), np.array(seconds))
    return [float(cost) for cost in costs]


def _streams(calls: Sequence[Call]) -> list[list[Call]]:
    """Return the chunks of each engine and step, in order."""
    streams: dict[tuple[int, str], list[Call]] = defaultdict(list)
    for call in sorted(calls, key=lambda call: call[0].began_s):
        streams[call[0].step, call[0].actor].append(call)
    return list(streams.values())


def _lengths(
    config: Config, stream: Sequence[Call], decode: Decode | None
) -> list[int]:
    """Return the sorted response lengths of a stream, as far as its chunks tell.

    Between the middles of two chunks' means they rise evenly; in the last chunk along a
    power law from that middle to the longest that `decode` had time for, which keeps
    the chunk's mean.
    """
    counts = _counts(config, len(stream))
    means = np.array(
        [work.num_tokens / n for (work, _), n in zip(stream, counts, strict=True)]
    )
    means = np.maximum.accumulate(means)
    edges = (means[1:] + means[:-1]) / 2
    first = 2 * means[0] - edges[0] if len(edges) else means[0]
    lows = np.concatenate([[first], edges])
    highs = 2 * means - lows
    power = 1.0
    if decode is not None and decode.step_s > 0 and len(edges):
        steps = stream[-1][1] / (decode.step_s + decode.seq_s * counts[-1] / 2)
        highs[-1] = max(means[-1] + 1, lows[-1] + steps)
        power = (highs[-1] - lows[-1]) / max(1.0, means[-1] - lows[-1]) - 1
    powers = [1.0] * (len(stream) - 1) + [power]
    parts = [_spread(*part) for part in zip(lows, highs, counts, powers, strict=True)]
    longest = config.rollout.max_response_tokens
    return [
        int(length) for length in np.clip(np.rint(np.concatenate(parts)), 1, longest)
    ]


def _spread(low: float, high: float, count: int, power: float) -> NDArray[np.float64]:
    places = (np.arange(count) + 1) / (count + 1)
    return low + (high - low) * places**power


def _counts(config: Config, chunks: int) -> list[int]:
    """Return how many rollouts each chunk of a stream has."""
    size = config.rollout.chunk_size
    rollout = config.rollout
    share = config.prompts.per_step * rollout.samples_per_prompt // rollout.num_engines
    return [max(1, min(size, share - size * index)) for index in range(chunks)]


def _by_chunk(config: Config, lengths: Sequence[int], decode: Decode) -> list[float]:
    """Return what decoding costs until each chunk is full."""
    parts = [0.0]
    chunk = config.rollout.chunk_size
    ended = 0
    slots = config.rollout.engine.max_num_seqs
    for seconds, done in continuous_batching(
        decode, lengths, [0] * len(lengths), slots=slots
    ):
        parts[-1] += seconds
        for _ in done:
            ended += 1
            if ended % chunk == 0 and ended < len(lengths):
                parts.append(0.0)
    return parts
