from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from tests.make import prompt
from topd_ray.config import RolloutConfig
from topd_ray.engines.protocols import Generation, GenerationRequest, NamedArray
from topd_ray.errors import TopdError, WeightsError
from topd_ray.messages import (
    PAD,
    CandidateSet,
    Prompt,
    RolloutRequest,
    rollout_requests,
)
from topd_ray.rollout import RolloutActor
from topd_ray.weights.buckets import in_buckets


class Echo:
    """Answers each request with its seed, latest request first; notes what it was
    asked.
    """

    def __init__(self) -> None:
        self.loaded: list[NamedArray] = []
        self.asked: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        self.asked = list(requests)
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


def requests(prompts: Sequence[Prompt]) -> list[RolloutRequest]:
    return rollout_requests(prompts, 3)


def alone(prompts: Sequence[Prompt]) -> list[RolloutRequest]:
    return rollout_requests(prompts, 1)


@pytest.fixture
def engine() -> Echo:
    return Echo()


@pytest.fixture
def actor(engine: Echo) -> RolloutActor:
    config = RolloutConfig(
        samples_per_prompt=3,
        chunk_size=4,
        num_top=2,
        temperature=0.7,
        top_p=0.9,
        top_k=11,
    )
    return RolloutActor(config, lambda: engine, run_seed=7)


def candidates(name: str, positions: Sequence[int]) -> CandidateSet:
    return CandidateSet(
        rollout_id=name,
        policy_version=0,
        prompt_ids_P=np.array([1, 2], np.int32),
        teacher_prompt_ids_P=np.array([3, 4, 5], np.int32),
        response_ids_N=np.arange(20, 30, dtype=np.int32),
        positions_W=np.array(positions, np.int32),
        losses_W=np.ones(len(positions), np.float32),
        groups_W=np.zeros(len(positions), np.int32),
        truncated=False,
    )


def test_each_prompt_is_sampled_n_times_and_sent_on_in_chunks(
    actor: RolloutActor,
) -> None:
    chunks = list(actor.roll_out(requests([prompt(0), prompt(1)]), policy_version=0))
    assert [len(chunk) for chunk in chunks] == [4, 2]
    names = {rollout.rollout_id for chunk in chunks for rollout in chunk}
    assert names == {f"0000000{p}.{s}" for p in (0, 1) for s in (0, 1, 2)}


def test_a_rollout_leads_back_to_its_prompt(actor: RolloutActor) -> None:
    (chunk,) = actor.roll_out(requests([prompt(5)]), policy_version=0)
    for rollout in chunk:
        assert (rollout.prompt_id, rollout.position, rollout.policy_version) == (
            "p5",
            5,
            0,
        )
        assert rollout.rollout_id.startswith("00000005.")


def test_samples_of_a_prompt_differ_and_repeat(actor: RolloutActor) -> None:
    first, again = (
        [
            r.response_ids_N[0]
            for chunk in actor.roll_out(requests([prompt(0)]), policy_version=0)
            for r in chunk
        ]
        for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 3


def test_rollouts_of_other_weights_than_asked_for_are_refused(
    actor: RolloutActor,
) -> None:
    with pytest.raises(TopdError, match="policy_version 1, but the engine holds 0"):
        next(actor.roll_out(requests([prompt(0)]), policy_version=1))


def test_an_update_moves_the_version_and_only_a_whole_one_does(
    actor: RolloutActor, engine: Echo
) -> None:
    weights = [(f"w{i}", np.full(4, i, np.float32)) for i in range(3)]
    buckets = list(in_buckets(weights, policy_version=1, max_bytes=16))
    with pytest.raises(TopdError):
        actor.update(1, buckets[:2])
    actor.update(1, buckets)
    assert [name for name, _ in engine.loaded] == ["w0", "w1", "w2"]
    (chunk,) = actor.roll_out(requests([prompt(0)]), policy_version=1)
    assert {rollout.policy_version for rollout in chunk} == {1}


def test_a_failed_load_is_the_error_of_every_later_call_until_one_succeeds(
    engine: Echo, actor: RolloutActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = list(
        in_buckets([("w", np.ones(2, np.float32))], policy_version=1, max_bytes=8)
    )

    def refuse(_: Iterable[NamedArray]) -> None:
        raise WeightsError("weight w is unknown to the model")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "load_weights", refuse)
        with pytest.raises(WeightsError, match=r"^weight w is unknown"):
            actor.update(1, buckets)
    cause = r"policy_version 1 failed: WeightsError: weight w is unknown"
    for version in (0, 1):
        with pytest.raises(WeightsError, match=cause):
            list(actor.roll_out(alone([prompt()]), policy_version=version))
    with pytest.raises(WeightsError, match=cause):
        actor.resample([], window=2, policy_version=1)
    with pytest.raises(WeightsError, match=cause):
        _ = actor.engine
    actor.update(1, buckets)
    assert list(actor.roll_out(alone([prompt()]), policy_version=1))


def test_the_settings_of_the_sampler_reach_the_engine(
    actor: RolloutActor, engine: Echo
) -> None:
    list(actor.roll_out(requests([prompt(0)]), policy_version=0))
    drawn = {
        (one.temperature, one.top_p, one.top_k, one.num_top) for one in engine.asked
    }
    assert drawn == {(0.7, 0.9, 11, 2)}


def test_the_teacher_reads_the_students_prompt_unless_it_has_its_own(
    actor: RolloutActor,
) -> None:
    own = np.array([40, 41], np.int32)
    (chunk,) = actor.roll_out(requests([prompt(0)]), policy_version=0)
    assert chunk[0].teacher_prompt_ids_P.tolist() == chunk[0].prompt_ids_P.tolist()
    (chunk,) = actor.roll_out(
        requests([prompt(1, teacher_ids_P=own)]), policy_version=0
    )
    assert chunk[0].teacher_prompt_ids_P.tolist() == [40, 41]
    assert chunk[0].prompt_ids_P.tolist() == prompt(1).token_ids_P.tolist()


def test_a_given_response_is_handed_on_without_decoding(engine: Echo) -> None:
    config = RolloutConfig(samples_per_prompt=1)
    actor = RolloutActor(config, lambda: engine, run_seed=7)
    whole = np.array([8, 9, 2], np.int32)
    cut = np.array([8, 9, 10], np.int32)
    asked = [
        prompt(0, response_ids_N=whole),
        prompt(1),
        prompt(2, response_ids_N=cut, response_finish_reason="length"),
    ]
    (chunk,) = actor.roll_out(alone(asked), policy_version=0)
    by_position = {one.position: one for one in chunk}
    assert [one.request_id for one in engine.asked] == ["00000001.0"]
    assert sorted(by_position) == [0, 1, 2]
    assert by_position[0].response_ids_N.tolist() == [8, 9, 2]
    assert by_position[2].response_ids_N.tolist() == [8, 9, 10]
    assert [by_position[i].finish_reason for i in (0, 2)] == ["stop", "length"]
    for i in (0, 2):
        assert by_position[i].logp_O.shape == (0,)
        assert (
            by_position[i].top_ids_OM.shape
            == by_position[i].top_logp_OM.shape
            == (0, 0)
        )


def test_given_responses_are_of_any_version_since_no_weights_made_them(
    engine: Echo,
) -> None:
    actor = RolloutActor(
        RolloutConfig(samples_per_prompt=1), lambda: engine, run_seed=7
    )
    given = prompt(0, response_ids_N=np.array([8, 2], np.int32))
    (chunk,) = actor.roll_out(alone([given]), policy_version=3)
    assert [one.policy_version for one in chunk] == [3]
    with pytest.raises(TopdError, match="policy_version 3"):
        list(actor.roll_out(alone([given, prompt(1)]), policy_version=3))


def test_given_responses_need_no_engine_and_weights_move_the_version_alone() -> None:
    actor = RolloutActor(RolloutConfig(samples_per_prompt=1), None, run_seed=7)
    given = prompt(0, response_ids_N=np.array([8, 2], np.int32))
    actor.update(1, [])
    (chunk,) = actor.roll_out(alone([given]), policy_version=1)
    assert [one.response_ids_N.tolist() for one in chunk] == [[8, 2]]
    with pytest.raises(TopdError, match="without an engine"):
        list(actor.roll_out(alone([given, prompt(1)]), policy_version=1))
    actor.close()


def test_a_fresh_window_starts_just_before_its_candidate_as_rollouts_are_sampled(
    actor: RolloutActor, engine: Echo
) -> None:
    found = [candidates("a", [0, 3]), candidates("b", []), candidates("c", [2])]
    fresh = actor.resample(found, window=4, policy_version=0)
    assert [one.prompt_ids.tolist() for one in engine.asked] == [
        [1, 2],
        [1, 2, 20, 21, 22],
        [1, 2, 20, 21],
    ]
    sampler = {
        (o.temperature, o.top_p, o.top_k, o.num_top, o.max_tokens) for o in engine.asked
    }
    assert sampler == {(0.7, 0.9, 11, 0, 4)}
    seeds = [one.seed for one in engine.asked]
    assert len(set(seeds)) == 3
    expected = [
        [[seed % 50, PAD, PAD, PAD] for seed in part]
        for part in (seeds[:2], [], seeds[2:])
    ]
    assert [one.tolist() for one in fresh] == expected
    assert fresh[1].shape == (0, 4)


def test_fresh_windows_repeat_in_a_retry_whatever_is_asked_beside_them(
    actor: RolloutActor, engine: Echo
) -> None:
    seeds = []
    for company in (
        [candidates("a", [1])],
        [candidates("b", [1]), candidates("a", [0, 1])],
    ):
        actor.resample(company, window=4, policy_version=0)
        seeds.append({one.request_id: one.seed for one in engine.asked}["a@1"])
    assert seeds[0] == seeds[1]


def test_fresh_windows_of_other_weights_than_asked_for_are_refused(
    actor: RolloutActor,
) -> None:
    with pytest.raises(TopdError, match="policy_version 2, but the engine holds 0"):
        actor.resample([candidates("a", [1])], window=4, policy_version=2)
