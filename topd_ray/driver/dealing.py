"""Who gets which rollouts: requests to engines, scored rollouts to learner ranks."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def deal_to_engines(requests: Sequence[T], num_engines: int) -> list[Sequence[T]]:
    """Cut the requests of a step into one block an engine, of sizes that differ by one.

    Blocks are contiguous: the samples of one prompt mostly stay on one engine, where
    the prompt is in the prefix cache.
    """
    small, num_large = divmod(len(requests), num_engines)
    blocks = []
    start = 0
    for engine in range(num_engines):
        end = start + small + (engine < num_large)
        blocks.append(requests[start:end])
        start = end
    return blocks


def deal_to_ranks(num_tokens: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Deal rollouts to ranks so that all have about the same number of tokens.

    The longest rollout goes first, each to the rank with the fewest tokens so far, so
    every rank gets one where there are as many. Returns indices into `num_tokens`, in
    ascending order within a rank.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    totals = [0] * num_ranks
    longest_first = sorted(range(len(num_tokens)), key=lambda i: (-num_tokens[i], i))
    for index in longest_first:
        # an empty rank comes first, even where a rollout had no token at all
        rank = min(range(num_ranks), key=lambda r: (totals[r], len(shares[r]), r))
        shares[rank].append(index)
        totals[rank] += num_tokens[index]
    return [sorted(share) for share in shares]
