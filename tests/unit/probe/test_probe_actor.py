from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from topd_ray.config import ProbeConfig
from topd_ray.engines.protocols import Generation, GenerationRequest, NamedArray
from topd_ray.errors import TopdError
from topd_ray.messages import HIGH, LOW, PAD, CandidateSet, Ints, ProbeSet
from topd_ray.models.tensors import input_embedding
from topd_ray.probe import ProbeActor, continue_from
from topd_ray.weights.buckets import WeightBucket, in_buckets


class Scripted:
    """A fake engine that continues every prefix with the same tokens.

    `requests` are those of the last call.
    """

    def __init__(self, continuation: Sequence[int]) -> None:
        self.continuation = continuation
        self.requests: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        self.requests = list(requests)
        for request in reversed(requests):  # engines finish in any order
            ids = np.array(self.continuation[: request.max_tokens], np.int32)
            yield Generation(
                request_id=request.request_id,
                token_ids_N=ids,
                logp_N=np.zeros(0, np.float32),
                top_ids_NM=np.zeros((len(ids), 0), np.int32),
                top_logp_NM=np.zeros((len(ids), 0), np.float32),
                finish_reason="stop",
                num_cached_tokens=len(request.prompt_ids) - 1,
            )

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Prober:
    """Continuations, then the transport between them, as a run calls them."""

    def __init__(
        self,
        config: ProbeConfig,
        folder: Path,
        engine: Scripted,
        *,
        student_folder: Path | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.actor = ProbeActor(config, folder, student_folder=student_folder)
        self.update = self.actor.update

    def probe(
        self,
        candidate_sets: Sequence[CandidateSet],
        fresh: Sequence[Ints] | None = None,
    ) -> list[ProbeSet]:
        continued = continue_from(self.engine, candidate_sets, self.config, run_seed=0)
        return self.actor.probe(candidate_sets, continued.windows, fresh)


def candidates(
    name: str,
    response: Sequence[int],
    positions: Sequence[int],
    *,
    truncated: bool = False,
    teacher_prompt: Sequence[int] = (1, 2),
    groups: Sequence[int] | None = None,
) -> CandidateSet:
    return CandidateSet(
        rollout_id=name,
        policy_version=3,
        prompt_ids_P=np.array([1, 2], np.int32),
        teacher_prompt_ids_P=np.array(teacher_prompt, np.int32),
        response_ids_N=np.array(response, np.int32),
        positions_W=np.array(positions, np.int32),
        losses_W=np.ones(len(positions), np.float32),
        groups_W=np.array(groups or [HIGH] * len(positions), np.int32),
        truncated=truncated,
    )


@pytest.fixture
def engine() -> Scripted:
    return Scripted([6, 7, 8, 9, 10])


@pytest.fixture
def actor(engine: Scripted, teacher_folder: Path) -> Prober:
    config = ProbeConfig(window=5)
    return Prober(config, teacher_folder, engine)


def test_the_prefix_ends_just_before_the_candidate(
    actor: Prober, engine: Scripted
) -> None:
    actor.probe([candidates("a", [20, 21, 22, 23], [0, 2])])
    prefixes: list[Ints] = [request.prompt_ids for request in engine.requests]
    assert [prefix.tolist() for prefix in prefixes] == [[1, 2], [1, 2, 20, 21]]
    assert {request.max_tokens for request in engine.requests} == {5}
    assert {request.temperature for request in engine.requests} == {0.0}


def test_the_teacher_continues_as_d4_says(
    engine: Scripted, teacher_folder: Path
) -> None:
    config = ProbeConfig(window=5, teacher_temperature=0.7, teacher_top_p=0.95)
    Prober(config, teacher_folder, engine).probe(
        [candidates("a", [20, 21, 22, 23], [0, 2])]
    )
    drawn = {(request.temperature, request.top_p) for request in engine.requests}
    assert drawn == {(0.7, 0.95)}


def test_the_students_window_is_its_own_rollout_from_the_candidate_on(
    actor: Prober,
) -> None:
    (probe_set,) = actor.probe([candidates("a", list(range(20, 30)), [2, 7])])
    assert probe_set.student_ids_WK.tolist() == [
        [22, 23, 24, 25, 26],
        [27, 28, 29, -1, -1],
    ]
    assert probe_set.num_student_W.tolist() == [5, 3]
    assert probe_set.num_teacher_W.tolist() == [5, 5]


def test_a_response_cut_at_the_limit_is_compared_with_as_many_teacher_tokens(
    actor: Prober,
) -> None:
    response = [*range(20, 27), 6, 7, 8]
    cut, ended = actor.probe(
        [
            candidates("cut", response, [1, 7], truncated=True),
            candidates("ended", response, [7]),
        ]
    )
    assert cut.num_teacher_W.tolist() == [5, 3]
    assert cut.d_ot_W[1] == 0.0
    assert ended.num_teacher_W.tolist() == [5]
    assert ended.d_ot_W[0] > 0.0


def test_answers_find_their_candidates_in_any_order(
    actor: Prober,
) -> None:
    probe_sets = actor.probe(
        [candidates("a", [20] * 9, [0, 3]), candidates("b", [21] * 9, [1])]
    )
    assert [probe_set.rollout_id for probe_set in probe_sets] == ["a", "b"]
    assert [len(probe_set.positions_W) for probe_set in probe_sets] == [2, 1]
    assert all(probe_set.policy_version == 3 for probe_set in probe_sets)
    assert set(probe_sets[1].student_ids_WK[0].tolist()) == {21}


def test_identical_windows_are_no_distance_apart_and_keep_their_tokens(
    actor: Prober,
) -> None:
    (probe_set,) = actor.probe([candidates("a", [20, 6, 7, 8, 9, 10], [1])])
    assert probe_set.d_ot_W.tolist() == [0.0]
    assert np.allclose(probe_set.plan_WKK[0], np.eye(5) / 5)
    assert probe_set.converged_W.all()


def test_plans_have_uniform_marginals_over_the_true_tokens(actor: Prober) -> None:
    (probe_set,) = actor.probe([candidates("a", list(range(20, 30)), [2, 7])])
    rows = probe_set.plan_WKK.sum(2)
    assert np.allclose(rows[0], 1 / 5, atol=1e-5)
    assert np.allclose(rows[1], [1 / 3, 1 / 3, 1 / 3, 0, 0], atol=1e-5)
    assert np.allclose(probe_set.plan_WKK.sum(1), 1 / 5, atol=1e-5)
    assert (probe_set.d_ot_W > 0.1).all()


def test_cached_prefix_tokens_are_counted(engine: Scripted) -> None:
    candidate_sets = [
        candidates("a", [20, 21, 22, 23], [0, 2]),
        candidates("b", [20], [0]),
    ]
    continued = continue_from(engine, candidate_sets, ProbeConfig(window=5), run_seed=0)
    assert continued.num_prefix_tokens == 2 + 4 + 2
    assert continued.num_cached_tokens == 1 + 3 + 1


def test_a_repeated_probe_requests_the_same_seeds(
    actor: Prober, engine: Scripted
) -> None:
    candidate_sets = [candidates("a", list(range(20, 30)), [2, 7])]
    first = (actor.probe(candidate_sets), [request.seed for request in engine.requests])
    again = (actor.probe(candidate_sets), [request.seed for request in engine.requests])
    assert first[1] == again[1]
    assert len(set(first[1])) == 2
    assert np.array_equal(first[0][0].plan_WKK, again[0][0].plan_WKK)


def test_rollouts_without_candidates_come_back_empty(actor: Prober) -> None:
    probe_sets = actor.probe(
        [candidates("a", [20, 21], []), candidates("b", [20, 21], [])]
    )
    assert [probe_set.plan_WKK.shape for probe_set in probe_sets] == [
        (0, 5, 5),
        (0, 5, 5),
    ]


def test_exact_transport_never_costs_more_than_the_entropic(
    engine: Scripted, teacher_folder: Path
) -> None:
    candidate_sets = [candidates("a", list(range(20, 30)), [2, 4, 7])]
    costs = [
        Prober(ProbeConfig(window=5, solver=solver), teacher_folder, engine)
        .probe(candidate_sets)[0]
        .d_ot_W
        for solver in ("exact", "scaling", "geomloss")
    ]
    assert (costs[0] <= costs[1] + 1e-6).all()
    assert (costs[1] <= costs[0] + 0.05 * np.log(5) + 1e-6).all()
    np.testing.assert_allclose(costs[2], costs[1], atol=1e-3)


def test_the_teacher_goes_on_from_its_own_prompt(
    actor: Prober, engine: Scripted
) -> None:
    actor.probe(
        [candidates("a", [20, 21, 22, 23], [0, 2], teacher_prompt=[40, 41, 42])]
    )
    prefixes = [request.prompt_ids.tolist() for request in engine.requests]
    assert prefixes == [[40, 41, 42], [40, 41, 42, 20, 21]]


def test_controls_are_probed_like_candidates_and_keep_their_group(
    actor: Prober,
) -> None:
    (probe_set,) = actor.probe(
        [candidates("a", list(range(20, 30)), [2, 1], groups=[HIGH, LOW])]
    )
    assert probe_set.groups_W.tolist() == [HIGH, LOW]
    assert probe_set.positions_W.tolist() == [2, 1]
    assert probe_set.student_ids_WK[1].tolist() == [21, 22, 23, 24, 25]
    assert not probe_set.resampled


@pytest.fixture
def resampling(engine: Scripted, teacher_folder: Path) -> Prober:
    config = ProbeConfig(window=5, student="resample")
    return Prober(config, teacher_folder, engine)


def test_fresh_windows_stand_for_the_students_own_and_have_no_token_limit(
    resampling: Prober,
) -> None:
    fresh = [
        np.array([[6, 7, 8, 9, 10], [11, 12, PAD, PAD, PAD]], np.int32),
        np.zeros((0, 5), np.int32),
        np.array([[30, 31, 32, 33, 34]], np.int32),
    ]
    response = list(range(20, 30))
    probe_sets = resampling.probe(
        [
            candidates("a", response, [8, 9], truncated=True),
            candidates("b", response, []),
            candidates("c", response, [1]),
        ],
        fresh,
    )
    assert [probe_set.student_ids_WK.tolist() for probe_set in probe_sets] == [
        window_WK.tolist() for window_WK in fresh
    ]
    assert probe_sets[0].num_student_W.tolist() == [5, 2]
    assert probe_sets[0].num_teacher_W.tolist() == [5, 5]
    assert probe_sets[0].d_ot_W[0] == 0.0
    assert probe_sets[0].d_ot_W[1] > 0.0
    assert all(probe_set.resampled for probe_set in probe_sets)


def test_fresh_windows_are_needed_to_resample_and_refused_otherwise(
    actor: Prober, resampling: Prober
) -> None:
    candidate_sets = [candidates("a", list(range(20, 30)), [2])]
    with pytest.raises(TopdError, match="called without fresh continuations"):
        resampling.probe(candidate_sets)
    with pytest.raises(TopdError, match="called with fresh continuations"):
        actor.probe(candidate_sets, [np.zeros((1, 5), np.int32)])


def test_windows_of_other_candidates_are_refused(resampling: Prober) -> None:
    candidate_sets = [candidates("a", list(range(20, 30)), [2, 3])]
    with pytest.raises(TopdError, match=r"by the teacher of shapes \[\(2, 4\)\]"):
        resampling.actor.probe(
            candidate_sets, [np.zeros((2, 4), np.int32)], [np.zeros((2, 5), np.int32)]
        )
    with pytest.raises(
        TopdError, match=r"shapes \[\(1, 5\)\] for candidates of \[\(2, 5\)\]"
    ):
        resampling.probe(candidate_sets, [np.zeros((1, 5), np.int32)])


def distances(actor: Prober) -> list[float]:
    (probe_set,) = actor.probe([candidates("a", list(range(20, 30)), [1, 3])])
    return probe_set.d_ot_W.tolist()


def test_the_embedding_is_the_teachers_or_the_students_as_set(
    engine: Scripted, teacher_folder: Path, student_folder: Path
) -> None:
    def opened(folder: Path, **config: str) -> Prober:
        return Prober(
            ProbeConfig.model_validate({"window": 5} | config),
            folder,
            engine,
            student_folder=student_folder,
        )

    by_student = distances(opened(teacher_folder, embedding="student"))
    assert by_student == distances(opened(student_folder, embedding="teacher"))
    assert by_student != distances(opened(teacher_folder, embedding="teacher"))


def test_a_students_embedding_needs_the_students_folder(
    engine: Scripted, teacher_folder: Path
) -> None:
    with pytest.raises(
        TopdError, match="embedding=student, but the prober has no folder"
    ):
        Prober(ProbeConfig(embedding="student"), teacher_folder, engine)


def published(folder: Path, *, bfloat16: bool = False) -> list[WeightBucket]:
    """Two weights of version 4, one of them the embedding of `folder`."""
    table = input_embedding(folder)
    array = (
        table.to(torch.bfloat16).view(torch.uint16).numpy()
        if bfloat16
        else table.numpy()
    )
    weights = [
        ("model.norm.weight", np.ones(3, np.float32)),
        ("model.embed_tokens.weight", array),
    ]
    return list(in_buckets(weights, policy_version=4, max_bytes=16))


def test_a_teacher_that_follows_takes_the_weights_and_its_embedding_follows(
    actor: Prober, engine: Scripted, teacher_folder: Path, student_folder: Path
) -> None:
    config = ProbeConfig(window=5)
    expected = distances(Prober(config, student_folder, engine))
    assert distances(actor) != expected
    actor.update(4, published(student_folder))
    assert distances(actor) == expected
    actor.update(4, published(teacher_folder, bfloat16=True))
    exact = distances(Prober(config, teacher_folder, engine))
    assert np.allclose(
        distances(actor), exact, atol=0.02
    )  # cosines of rows of 3 digits


def test_a_students_embedding_stays_that_of_its_start(
    engine: Scripted, teacher_folder: Path, student_folder: Path
) -> None:
    config = ProbeConfig(window=5, embedding="student")
    actor = Prober(config, student_folder, engine, student_folder=student_folder)
    before = distances(actor)
    actor.update(4, published(teacher_folder))
    assert distances(actor) == before


def test_weights_without_an_embedding_are_refused_where_it_is_followed(
    actor: Prober,
) -> None:
    weights = [("model.norm.weight", np.ones(3, np.float32))]
    with pytest.raises(TopdError, match="no input embedding"):
        actor.update(4, list(in_buckets(weights, policy_version=4, max_bytes=16)))
