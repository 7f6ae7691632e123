"""Weights -> buckets of bounded size -> weights.

A policy version travels from the learner to the engines in buckets.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from topd_ray.engines.protocols import NamedArray
from topd_ray.errors import TopdError

BUCKET_BYTES = 256 * 2**20
"""Size of one piece of a policy version in the object store.

Large enough that a call a bucket costs nothing beside the copy of it (a 4B model in
bfloat16 is 30 buckets), and small enough that the smallest object store of a real run,
a few GiB, holds several while the engines read.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBucket:
    """Some of the weights of one policy version.

    Example: a version of 8 GB in buckets of 256 MiB is about 32 of these, `index` 0 to
    31, of which the last has is_last=True.
    """

    policy_version: int
    """Optimizer steps that the weights have behind them."""
    index: int
    """Place among the version's buckets, from 0."""
    # Not a number of buckets: the sender does not know it before the last weight.
    is_last: bool
    arrays: tuple[NamedArray, ...]
    """Weights with their Hugging Face names; bfloat16 as the bits in uint16."""
    checksum: str
    """128 bits over every other field and the arrays' names, shapes, dtypes, bytes."""


def in_buckets(
    weights: Iterable[NamedArray], *, policy_version: int, max_bytes: int
) -> Iterator[WeightBucket]:
    """Yield the weights in order, in buckets of at most `max_bytes`.

    A larger weight is a bucket by itself. A bucket is made when it is asked for, so
    that one bucket is in memory and not the whole model. Raises TopdError where there
    is no weight.
    """
    index = 0
    held: list[NamedArray] = []
    held_bytes = 0
    for name, array in weights:
        if held and held_bytes + array.nbytes > max_bytes:
            yield _bucket(policy_version, index, held, is_last=False)
            index += 1
            held = []
            held_bytes = 0
        held.append((name, array))
        held_bytes += array.nbytes
    if not held:
        raise TopdError(f"policy_version {policy_version} has no weights to publish")
    yield _bucket(policy_version, index, held, is_last=True)


def open_buckets(
    buckets: Iterable[WeightBucket], *, policy_version: int
) -> Iterator[NamedArray]:
    """Yield the weights of `buckets` in order.

    A bucket is checked as a whole before any weight of it is yielded.
    Raises TopdError for a bucket of another version, out of order, altered on the way,
    after the last one, or missing at the end.
    """
    expected = 0
    ended = False
    for bucket in buckets:
        _check(bucket, policy_version=policy_version, expected=expected, ended=ended)
        expected += 1
        ended = bucket.is_last
        yield from bucket.arrays
    # Without its last buckets an engine would decode with layers of two versions.
    if not ended:
        raise TopdError(
            f"weights of policy_version {policy_version} end after bucket"
            f" {expected - 1}, which is not the last; publish them again"
        )


def _bucket(
    policy_version: int, index: int, arrays: Sequence[NamedArray], *, is_last: bool
) -> WeightBucket:
    return WeightBucket(
        policy_version=policy_version,
        index=index,
        is_last=is_last,
        arrays=tuple(arrays),
        checksum=_checksum(policy_version, index, is_last, arrays),
    )


def _check(
    bucket: WeightBucket, *, policy_version: int, expected: int, ended: bool
) -> None:
    name = f"weight bucket {bucket.index} of policy_version {bucket.policy_version}"
    if bucket.policy_version != policy_version:
        raise TopdError(f"{name}: policy_version {policy_version} was announced")
    if ended:
        raise TopdError(
            f"{name}: it comes after the bucket that was marked as the last"
        )
    if bucket.index != expected:
        raise TopdError(
            f"{name}: bucket {expected} was expected; one is missing or out of order"
        )
    found = _checksum(
        bucket.policy_version, bucket.index, bucket.is_last, bucket.arrays
    )
    if found != bucket.checksum:
        raise TopdError(
            f"{name}: checksum {found[:12]} differs from the {bucket.checksum[:12]} it"
            " was sent with; it was altered on the way"
        )


def _checksum(
    policy_version: int, index: int, is_last: bool, arrays: Sequence[NamedArray]
) -> str:
    """Return 128 bits that tell a bucket from one altered by accident.

    No cryptographic hash: it is computed twice in every weight sync, over all weights,
    and must be as fast as memory.
    """
    digest = xxhash.xxh3_128(f"{policy_version} {index} {is_last}".encode())
    for name, array in arrays:
        # Names and shapes too: two weights of equal bytes could change places.
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        # xxhash refuses memory that is not contiguous.
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


__all__ = ["WeightBucket", "in_buckets", "open_buckets"]
