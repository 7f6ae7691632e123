from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from topd_ray.config import ProbeConfig
from topd_ray.engines.protocols import Generation, GenerationRequest, NamedArray
from topd_ray.messages import CandidateSet, Ints
from topd_ray.probe import ProbeActor


class Scripted:
    """A teacher that continues every prefix as it is told; notes what it was asked."""

    def __init__(self, continuation: Sequence[int]) -> None:
        self.continuation, self.asked = continuation, list[GenerationRequest]()

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        self.asked = list(requests)
        for request in reversed(requests):  # engines finish in an order of their own
            ids = np.array(self.continuation[: request.max_tokens], np.int32)
            yield Generation(
                request_id=request.request_id,
                token_ids_N=ids,
                logp_N=np.zeros(0, np.float32),
                top_ids_NM=np.zeros((len(ids), 0), np.int32),
                top_logp_NM=np.zeros((len(ids), 0), np.float32),
                finish_reason="stop",
            )

    def load_weights(self, _: Iterable[NamedArray]) -> None:
        raise AssertionError("a probe never changes weights")

    def close(self) -> None:
        pass


def candidates(
    name: str, response: Sequence[int], positions: Sequence[int], *, truncated: bool = False
) -> CandidateSet:
    return CandidateSet(
        rollout_id=name,
        policy_version=3,
        prompt_ids_P=np.array([1, 2], np.int32),
        response_ids_N=np.array(response, np.int32),
        positions_W=np.array(positions, np.int32),
        losses_W=np.ones(len(positions), np.float32),
        truncated=truncated,
    )


@pytest.fixture
def engine() -> Scripted:
    return Scripted([6, 7, 8, 9, 10])


@pytest.fixture
def actor(engine: Scripted, teacher_folder: Path) -> ProbeActor:
    config = ProbeConfig(window=5)
    return ProbeActor(config, teacher_folder, lambda: engine, run_seed=0)


def test_the_prefix_ends_just_before_the_candidate(actor: ProbeActor, engine: Scripted) -> None:
    actor.probe([candidates("a", [20, 21, 22, 23], [0, 2])])
    prefixes: list[Ints] = [request.prompt_ids for request in engine.asked]
    assert [prefix.tolist() for prefix in prefixes] == [[1, 2], [1, 2, 20, 21]]
    assert {request.max_tokens for request in engine.asked} == {5}
    assert {request.temperature for request in engine.asked} == {0.0}


def test_the_students_window_is_its_own_rollout_from_the_candidate_on(actor: ProbeActor) -> None:
    (found,) = actor.probe([candidates("a", list(range(20, 30)), [2, 7])])
    assert found.student_ids_WK.tolist() == [[22, 23, 24, 25, 26], [27, 28, 29, -1, -1]]
    assert found.num_student_W.tolist() == [5, 3]
    assert found.num_teacher_W.tolist() == [5, 5]


def test_a_response_cut_at_the_limit_is_compared_with_as_many_teacher_tokens(
    actor: ProbeActor,
) -> None:
    response = [*range(20, 27), 6, 7, 8]
    cut, ended = actor.probe(
        [candidates("cut", response, [1, 7], truncated=True), candidates("ended", response, [7])]
    )
    assert cut.num_teacher_W.tolist() == [5, 3]
    assert cut.d_ot_W[1] == 0.0
    assert ended.num_teacher_W.tolist() == [5]
    assert ended.d_ot_W[0] > 0.0


def test_answers_find_their_candidates_whatever_order_they_come_in(actor: ProbeActor) -> None:
    found = actor.probe([candidates("a", [20] * 9, [0, 3]), candidates("b", [21] * 9, [1])])
    assert [one.rollout_id for one in found] == ["a", "b"]
    assert [len(one.positions_W) for one in found] == [2, 1]
    assert all(one.policy_version == 3 for one in found)
    assert set(found[1].student_ids_WK[0].tolist()) == {21}


def test_identical_windows_are_no_distance_apart_and_keep_their_tokens(actor: ProbeActor) -> None:
    (found,) = actor.probe([candidates("a", [20, 6, 7, 8, 9, 10], [1])])
    assert found.d_ot_W.tolist() == [0.0]
    assert np.allclose(found.plan_WKK[0], np.eye(5) / 5)
    assert found.converged_W.all()


def test_plans_have_uniform_marginals_over_the_true_tokens(actor: ProbeActor) -> None:
    (found,) = actor.probe([candidates("a", list(range(20, 30)), [2, 7])])
    rows = found.plan_WKK.sum(2)
    assert np.allclose(rows[0], 1 / 5, atol=1e-5)
    assert np.allclose(rows[1], [1 / 3, 1 / 3, 1 / 3, 0, 0], atol=1e-5)
    assert np.allclose(found.plan_WKK.sum(1), 1 / 5, atol=1e-5)
    assert (found.d_ot_W > 0.1).all()


def test_a_retried_probe_asks_with_the_same_seeds(actor: ProbeActor, engine: Scripted) -> None:
    asked = [candidates("a", list(range(20, 30)), [2, 7])]
    first = (actor.probe(asked), [request.seed for request in engine.asked])
    again = (actor.probe(asked), [request.seed for request in engine.asked])
    assert first[1] == again[1]
    assert len(set(first[1])) == 2
    assert np.array_equal(first[0][0].plan_WKK, again[0][0].plan_WKK)


def test_rollouts_without_candidates_come_back_empty(actor: ProbeActor) -> None:
    found = actor.probe([candidates("a", [20, 21], []), candidates("b", [20, 21], [])])
    assert [one.plan_WKK.shape for one in found] == [(0, 5, 5), (0, 5, 5)]


def test_exact_transport_never_costs_more_than_the_entropic(
    engine: Scripted, teacher_folder: Path
) -> None:
    asked = [candidates("a", list(range(20, 30)), [2, 4, 7])]
    costs = [
        ProbeActor(ProbeConfig(window=5, solver=solver), teacher_folder, lambda: engine, run_seed=0)
        .probe(asked)[0]
        .d_ot_W
        for solver in ("exact", "sinkhorn")
    ]
    assert (costs[0] <= costs[1] + 1e-6).all()
    assert (costs[1] <= costs[0] + 0.05 * np.log(5) + 1e-6).all()
