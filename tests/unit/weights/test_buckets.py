from dataclasses import replace

import numpy as np
import pytest

from topd_ray.engines.protocols import NamedArray
from topd_ray.errors import TopdError
from topd_ray.weights.buckets import WeightBucket, in_buckets, open_buckets


@pytest.fixture
def weights() -> list[NamedArray]:
    rng = np.random.default_rng(0)
    return [
        ("embed", rng.standard_normal((10, 4), dtype=np.float32)),  # 160 bytes
        ("norm", rng.standard_normal(4, dtype=np.float32)),  # 16
        ("bits", rng.integers(0, 2**16, (3, 2)).astype(np.uint16)),  # 12
        ("last", rng.standard_normal((5, 4), dtype=np.float32)),  # 80
    ]


def sent(weights: list[NamedArray], max_bytes: int = 100) -> list[WeightBucket]:
    return list(in_buckets(weights, policy_version=3, max_bytes=max_bytes))


@pytest.mark.parametrize("max_bytes", [1, 100, 176, 10**6])
def test_what_was_put_in_comes_out_in_order(weights, max_bytes):
    opened = list(open_buckets(sent(weights, max_bytes), policy_version=3))
    assert [name for name, _ in opened] == [name for name, _ in weights]
    for (_, got), (_, put) in zip(opened, weights, strict=True):
        np.testing.assert_array_equal(got, put)
        assert got.dtype == put.dtype


def test_buckets_stay_within_the_bound_except_for_a_single_large_weight(weights):
    names = [[name for name, _ in bucket.arrays] for bucket in sent(weights)]
    assert names == [["embed"], ["norm", "bits"], ["last"]]
    assert [bucket.is_last for bucket in sent(weights)] == [False, False, True]


def test_buckets_are_made_as_weights_arrive(weights):
    asked = []

    def arriving():
        for name, array in weights:
            asked.append(name)
            yield name, array

    next(in_buckets(arriving(), policy_version=0, max_bytes=100))
    assert asked == ["embed", "norm"]


def refused(buckets: list[WeightBucket], match: str, *, version: int = 3) -> list[str]:
    """Names yielded before the error."""
    opened: list[str] = []
    arriving = open_buckets(buckets, policy_version=version)
    with pytest.raises(TopdError, match=match):
        opened.extend(name for name, _ in arriving)
    return opened


def test_buckets_of_another_version_are_refused(weights):
    assert (
        refused(
            sent(weights), "policy_version 3: policy_version 4 was announced", version=4
        )
        == []
    )


def test_a_missing_bucket_is_named(weights):
    first, _, last = sent(weights)
    assert refused([first, last], "bucket 2 .*bucket 1 was expected") == ["embed"]


def test_buckets_out_of_order_are_refused(weights):
    first, second, last = sent(weights)
    assert refused([second, first, last], "bucket 0 was expected") == []


def test_a_missing_end_is_noticed(weights):
    assert refused(sent(weights)[:-1], "end after bucket 1") == [
        "embed",
        "norm",
        "bits",
    ]


def test_no_buckets_at_all_are_noticed():
    assert refused([], "policy_version 3 end after bucket -1") == []


def test_nothing_may_follow_the_last_bucket(weights):
    buckets = sent(weights)
    assert "last" in refused([*buckets, buckets[-1]], "marked as the last")


def _flip_a_bit(bucket: WeightBucket) -> WeightBucket:
    (name, array), *rest = bucket.arrays
    altered = array.copy()
    altered.view(np.uint8).reshape(-1)[0] ^= 1
    return replace(bucket, arrays=((name, altered), *rest))


def _rename(bucket: WeightBucket) -> WeightBucket:
    (_, array), *rest = bucket.arrays
    return replace(bucket, arrays=(("other", array), *rest))


def _reshape(bucket: WeightBucket) -> WeightBucket:
    (name, array), *rest = bucket.arrays
    return replace(bucket, arrays=((name, array[None]), *rest))


def _retype(bucket: WeightBucket) -> WeightBucket:
    (name, array), *rest = bucket.arrays
    return replace(bucket, arrays=((name, array.view(np.int32)), *rest))


def _end_early(bucket: WeightBucket) -> WeightBucket:
    return replace(bucket, is_last=True)


def _swap_two_bytes(bucket: WeightBucket) -> WeightBucket:
    """What a sum of bytes would not see."""
    (name, array), *rest = bucket.arrays
    altered = array.copy()
    flat = altered.view(np.uint8).reshape(-1)
    first, other = 0, int(np.flatnonzero(flat != flat[0])[0])
    flat[[first, other]] = flat[[other, first]]
    return replace(bucket, arrays=((name, altered), *rest))


def _swap_two_weights(bucket: WeightBucket) -> WeightBucket:
    return replace(bucket, arrays=bucket.arrays[::-1])


def _swap_two_names(bucket: WeightBucket) -> WeightBucket:
    (one, first), (other, second) = bucket.arrays
    return replace(bucket, arrays=((other, first), (one, second)))


@pytest.mark.parametrize(
    "alter",
    [
        _flip_a_bit,
        _swap_two_bytes,
        _swap_two_weights,
        _swap_two_names,
        _rename,
        _reshape,
        _retype,
        _end_early,
    ],
)
def test_an_altered_bucket_is_refused_before_anything_of_it_is_yielded(weights, alter):
    first, second, last = sent(weights)
    assert refused([first, alter(second), last], "bucket 1 .*checksum") == ["embed"]


def test_nothing_to_publish_is_an_error():
    with pytest.raises(TopdError, match="policy_version 2 has no weights"):
        list(in_buckets([], policy_version=2, max_bytes=10))


@pytest.mark.parametrize("place", [0, 123_457, -1])
def test_every_number_of_a_large_weight_is_checked(place):
    large = np.zeros(2**20, np.float32)
    (bucket,) = in_buckets([("w", large)], policy_version=3, max_bytes=2**30)
    altered = large.copy()
    altered[place] = 1.0
    refused([replace(bucket, arrays=(("w", altered),))], "checksum")
    assert list(open_buckets([bucket], policy_version=3))
