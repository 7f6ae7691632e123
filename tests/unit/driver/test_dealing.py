import pytest
from hypothesis import given
from hypothesis import strategies as st

from topd_ray.driver.dealing import deal_to_engines, deal_to_ranks


@given(num_requests=st.integers(0, 40), engines=st.integers(1, 7))
def test_engines_get_contiguous_blocks_of_sizes_that_differ_by_at_most_one(
    num_requests: int, engines: int
) -> None:
    requests = list(range(num_requests))
    blocks = deal_to_engines(requests, engines)
    joined: list[int] = []
    for block in blocks:
        joined += block
    sizes = [len(block) for block in blocks]
    assert joined == requests
    assert len(sizes) == engines
    assert max(sizes) - min(sizes) <= 1


def test_one_engine_gets_all_requests_in_their_order() -> None:
    assert deal_to_engines(["a.0", "a.1", "b.0"], 1) == [["a.0", "a.1", "b.0"]]


@given(
    num_tokens=st.lists(st.integers(0, 9000), max_size=30),
    ranks=st.integers(1, 8),
)
def test_ranks_get_each_rollout_once_and_none_idles_while_another_has_two(
    num_tokens: list[int], ranks: int
) -> None:
    shares = deal_to_ranks(num_tokens, ranks)
    dealt: list[int] = []
    for share in shares:
        assert share == sorted(share)
        dealt += share
    assert sorted(dealt) == list(range(len(num_tokens)))
    if len(num_tokens) >= ranks:
        assert all(shares)
    totals = [sum(num_tokens[i] for i in share) for share in shares]
    # longest first to the emptiest: no two ranks differ by more than one rollout
    assert max(totals) - min(totals) <= max(num_tokens, default=0)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_dealing_depends_on_the_lengths_alone(ranks: int) -> None:
    lengths = [700, 20, 350, 350, 900, 1]
    assert deal_to_ranks(lengths, ranks) == deal_to_ranks(list(lengths), ranks)
