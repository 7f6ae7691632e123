from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from tests.make import prompt
from topd_ray.config import RolloutConfig
from topd_ray.engines.protocols import Generation, GenerationRequest, NamedArray
from topd_ray.errors import TopdError
from topd_ray.rollout import RolloutActor
from topd_ray.weights.buckets import in_buckets


class Echo:
    """Answers each request with its seed, latest request first."""

    def __init__(self) -> None:
        self.loaded: list[NamedArray] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        for request in reversed(requests):
            yield Generation(
                request_id=request.request_id,
                token_ids_N=np.array([request.seed % 50], np.int32),
                logp_N=np.zeros(1, np.float32),
                top_ids_NM=np.zeros((1, request.num_top), np.int32),
                top_logp_NM=np.zeros((1, request.num_top), np.float32),
                finish_reason="stop",
            )

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        self.loaded = list(weights)

    def close(self) -> None:
        pass


@pytest.fixture
def engine() -> Echo:
    return Echo()


@pytest.fixture
def actor(engine: Echo) -> RolloutActor:
    config = RolloutConfig(samples_per_prompt=3, chunk_size=4, num_top=2)
    return RolloutActor(config, lambda: engine, run_seed=7)


def test_each_prompt_is_sampled_n_times_and_sent_on_in_chunks(actor: RolloutActor) -> None:
    chunks = list(actor.roll_out([prompt(0), prompt(1)], policy_version=0))
    assert [len(chunk) for chunk in chunks] == [4, 2]
    names = {rollout.rollout_id for chunk in chunks for rollout in chunk}
    assert names == {f"0000000{p}.{s}" for p in (0, 1) for s in (0, 1, 2)}


def test_a_rollout_leads_back_to_its_prompt(actor: RolloutActor) -> None:
    (chunk,) = actor.roll_out([prompt(5)], policy_version=0)
    for rollout in chunk:
        assert (rollout.prompt_id, rollout.position, rollout.policy_version) == ("p5", 5, 0)
        assert rollout.rollout_id.endswith(f".{rollout.sample_index}")


def test_samples_of_a_prompt_differ_and_repeat(actor: RolloutActor) -> None:
    first, again = (
        [
            r.response_ids_N[0]
            for chunk in actor.roll_out([prompt(0)], policy_version=0)
            for r in chunk
        ]
        for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 3


def test_rollouts_of_other_weights_than_asked_for_are_refused(actor: RolloutActor) -> None:
    with pytest.raises(TopdError, match="policy_version 1, but the engine holds 0"):
        next(actor.roll_out([prompt(0)], policy_version=1))


def test_an_update_moves_the_version_and_only_a_whole_one_does(
    actor: RolloutActor, engine: Echo
) -> None:
    weights = [(f"w{i}", np.full(4, i, np.float32)) for i in range(3)]
    buckets = list(in_buckets(weights, policy_version=1, max_bytes=16))
    with pytest.raises(TopdError):
        actor.update(1, buckets[:2])
    actor.update(1, buckets)
    assert [name for name, _ in engine.loaded] == ["w0", "w1", "w2"]
    (chunk,) = actor.roll_out([prompt(0)], policy_version=1)
    assert {rollout.policy_version for rollout in chunk} == {1}
