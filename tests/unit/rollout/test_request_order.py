from hypothesis import given
from hypothesis import strategies as st

from tests.make import rollout
from topd_ray.rollout.request_order import RequestOrder


@given(data=st.data(), count=st.integers(1, 12), chunk_size=st.integers(1, 5))
def test_chunks_come_in_the_order_of_the_requests_whichever_ends_first(
    data: st.DataObject, count: int, chunk_size: int
) -> None:
    wanted = [f"r{index}" for index in range(count)]
    queue = RequestOrder(wanted, chunk_size)
    chunks = []
    for name in data.draw(st.permutations([*wanted, "unasked"])):
        queue.add(rollout(name), num_overshot=2)
        chunks += list(queue.chunks())
    names = [[one.rollout_id for one in chunk.rollouts] for chunk in chunks]
    assert [name for chunk in names for name in chunk] == wanted
    assert all(len(chunk) == chunk_size for chunk in names[:-1])
    assert [chunk.num_overshot for chunk in chunks] == [2 * len(n) for n in names]
