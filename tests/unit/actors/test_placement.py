"""Which actor is on which node and GPUs: what must hold in every placement."""

import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.actors.placement import (
    ClusterNode,
    Placement,
    assumed_placement,
    place,
)
from topd_ray.actors.resources import resources_of, total_resources
from topd_ray.config import Config, load_config, parse_config
from topd_ray.errors import PlacementError

ROOT = Path(__file__).parents[3]
CONFIGS = [
    file
    for file in sorted((ROOT / "configs").rglob("*.yaml"))
    if file.parent.name != "studies"
]
H100 = ROOT / "configs" / "qwen3-30b-a3b-to-4b-4xh100.yaml"


def config_of(
    *,
    layout: str = "manual",
    rollouts: tuple[int, float, int] = (1, 0.0, 1),
    teachers: tuple[int, float, int] = (1, 0.0, 1),
    ranks: tuple[int, float] = (1, 0.0),
    prober_gpus: float | None = None,
    cpus: float = 1.0,
    prompts: int = 64,
) -> Config:
    """A config by count and GPUs of each kind, and tensor_parallel of the engines."""
    engines = []
    for _, gpus, tensor_parallel in (rollouts, teachers):
        engine = {
            "tensor_parallel": tensor_parallel,
            "kv_cache_gib": 1,
            "cpus": cpus,
        }
        engines.append(engine | ({"gpus": gpus} if layout == "manual" else {}))
    learner: dict[str, Any] = {"model": "s", "num_ranks": ranks[0], "cpus": cpus}
    values = {
        "prompts": {"path": "p", "per_step": prompts},
        "rollout": {"num_engines": rollouts[0], "engine": engines[0]},
        "teacher": {"model": "t", "num_engines": teachers[0], "engine": engines[1]},
        "learner": learner | ({"gpus": ranks[1]} if layout == "manual" else {}),
        "probe": {"cpus": cpus}
        if prober_gpus is None
        else {"engine": {"gpus": prober_gpus, "kv_cache_gib": 1}},
        "cluster": {"layout": layout},
    }
    return parse_config(values, source="test")


def nodes_of(*gpus: int, cpus: float = 64) -> list[ClusterNode]:
    return [
        ClusterNode(name=f"n{i}", gpus=count, cpus=cpus) for i, count in enumerate(gpus)
    ]


def gpus_of(placement: Placement) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {a.name: (a.node, a.gpus) for a in placement.actors if a.gpus}


def assert_sound(config: Config, placement: Placement) -> None:
    """What holds in every placement, counted anew from the actors alone."""
    kinds = resources_of(config)
    assert Counter(actor.kind for actor in placement.actors) == {
        kind: of.count for kind, of in kinds.items() if of.count
    }
    shares = Counter[tuple[int, int]]()
    kinds_on: dict[tuple[int, int], list[str]] = {}
    cpus = Counter[int]()
    for actor in placement.actors:
        node = placement.nodes[actor.node]
        cpus[actor.node] += actor.cpus
        assert len(set(actor.gpus)) == len(actor.gpus)
        assert all(0 <= gpu < node.gpus for gpu in actor.gpus)
        asked = kinds[actor.kind].gpus
        assert asked == pytest.approx(len(actor.gpus) * actor.share)
        for gpu in actor.gpus:
            shares[actor.node, gpu] += actor.share
            kinds_on.setdefault((actor.node, gpu), []).append(actor.kind)
    for index, taken in cpus.items():
        assert taken <= placement.nodes[index].cpus + 1e-6
    for on_gpu in kinds_on.values():
        assert on_gpu.count("learner") <= 1
        if config.cluster.layout == "colocated":
            assert len(set(on_gpu)) == len(on_gpu)
    if config.cluster.layout != "colocated":
        assert all(share <= 1 + 1e-6 for share in shares.values())
    held = {(bundle.node, gpu) for bundle in placement.bundles for gpu in bundle.gpus}
    assert held == set(kinds_on)
    on_gpus = sum(actor.cpus for actor in placement.actors if actor.gpus)
    assert sum(bundle.cpus for bundle in placement.bundles) == pytest.approx(on_gpus)


shares = st.sampled_from([0.0, 0.25, 0.3, 0.35, 0.5, 0.65, 1.0])


@st.composite
def configs(draw: st.DrawFn) -> Config:
    def engine() -> tuple[int, float, int]:
        size = draw(st.sampled_from([1, 1, 2, 4]))
        gpus = draw(shares) if size == 1 else float(size)
        return draw(st.integers(1, 4)), gpus, size

    return config_of(
        layout=draw(st.sampled_from(["manual", "disaggregated", "colocated"])),
        rollouts=engine(),
        teachers=engine(),
        ranks=(draw(st.integers(1, 8)), draw(shares)),
        cpus=draw(st.sampled_from([0.5, 1.0, 3.0])),
    )


@settings(max_examples=150, deadline=None)
@given(
    config=configs(),
    gpus=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    cpus=st.sampled_from([4, 16, 64]),
)
def test_actors_are_placed_soundly_or_refused_with_what_is_left(
    config: Config, gpus: list[int], cpus: int
) -> None:
    nodes = nodes_of(*gpus, cpus=cpus)
    placement = refusal = None
    try:
        placement = place(config, nodes, where="the cluster")
    except PlacementError as error:
        refusal = error
    if placement is not None:
        assert_sound(config, placement)
        assert placement == place(config, nodes, where="the cluster")
    else:
        assert refusal is not None
        assert refusal.exit_code == 2
        assert re.search(r"\d.* has \d|, the cluster has \d", str(refusal))
        assert "lower" in str(refusal)


@settings(max_examples=60, deadline=None)
@given(config=configs())
def test_nodes_of_eight_without_end_hold_every_config_of_groups_of_four(
    config: Config,
) -> None:
    placement = assumed_placement(config)
    assert_sound(config, placement)
    assert {a.node for a in placement.actors} == set(range(len(placement.nodes)))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_is_placed(file: Path) -> None:
    config = load_config(file)
    placement = assumed_placement(config)
    assert_sound(config, placement)
    # No GPU more than the shares add up to.
    assert placement.num_gpus == math.ceil(total_resources(config)["GPU"])


def test_the_papers_layout_has_every_kind_on_the_same_four_gpus() -> None:
    config = config_of(
        layout="colocated", rollouts=(2, 2, 2), teachers=(1, 4, 4), ranks=(4, 1)
    )
    placement = place(config, nodes_of(4), where="here")
    assert gpus_of(placement) == {
        "learner[0]": (0, (0,)),
        "learner[1]": (0, (1,)),
        "learner[2]": (0, (2,)),
        "learner[3]": (0, (3,)),
        "rollout[0]": (0, (0, 1)),
        "rollout[1]": (0, (2, 3)),
        "teacher[0]": (0, (0, 1, 2, 3)),
    }
    assert placement.learners_share


def test_a_kind_that_needs_fewer_gpus_stays_among_those_in_use() -> None:
    config = config_of(
        layout="colocated", rollouts=(1, 2, 2), teachers=(1, 2, 2), ranks=(4, 1)
    )
    placement = place(config, nodes_of(8), where="here")
    assert [bundle.gpus for bundle in placement.bundles] == [(0, 1, 2, 3)]
    # The two engines do not crowd on one pair while the other has a rank alone.
    assert {gpus_of(placement)[name][1] for name in ("rollout[0]", "teacher[0]")} == {
        (0, 1),
        (2, 3),
    }


def test_by_hand_each_learner_rank_shares_its_gpu_with_a_rollout_engine() -> None:
    config = load_config(H100)
    placement = place(config, nodes_of(4), where="here")
    found = gpus_of(placement)
    for index in range(2):
        assert found[f"rollout[{index}]"] == found[f"learner[{index}]"]
    assert len(found["teacher[0]"][1]) == 2
    assert not set(found["teacher[0]"][1]) & set(found["learner[0]"][1])


def test_alone_on_its_gpu_no_learner_rank_waits_for_engines() -> None:
    config = config_of(
        layout="disaggregated", rollouts=(2, 1, 1), teachers=(1, 2, 2), ranks=(2, 1)
    )
    placement = place(config, nodes_of(4, 2), where="here")
    assert not placement.learners_share
    taken = sorted(
        (node, gpu) for node, gpus in gpus_of(placement).values() for gpu in gpus
    )
    assert all(one != other for one, other in pairwise(taken))


def test_a_group_is_never_split_over_two_nodes() -> None:
    config = config_of(teachers=(1, 4, 4))
    with pytest.raises(PlacementError) as caught:
        place(config, nodes_of(3, 3), where="here")
    assert str(caught.value).startswith(
        "teacher[0] needs 4 GPUs of one node, and the largest node has 3"
    )
    assert gpus_of(place(config, nodes_of(3, 4), where="here")) == {
        "teacher[0]": (1, (0, 1, 2, 3))
    }


def test_shares_that_add_up_but_fit_no_gpu_are_refused_with_what_is_left() -> None:
    config = config_of(rollouts=(2, 0.6, 1), teachers=(1, 0.6, 1))
    with pytest.raises(PlacementError) as caught:
        place(config, nodes_of(2), where="here")
    assert str(caught.value).startswith(
        "teacher[0] needs 0.6 of a GPU and 1 CPUs, and no node has that left: n0 has"
        " 62 of 64 CPUs left, 2 GPUs, GPU 0 with rollout[0] 0.6, GPU 1 with"
        " rollout[1] 0.6; lower"
    )


def test_a_tight_packing_is_tried_where_an_even_spread_leaves_no_room() -> None:
    # Spread evenly, the probe worker's 0.3 would go beside the rank's 0.66, and one of
    # the two 0.17 would fit nowhere.
    config = config_of(
        ranks=(1, 0.66), teachers=(2, 0.35, 1), rollouts=(2, 0.17, 1), prober_gpus=0.3
    )
    placement = place(config, nodes_of(2), where="here")
    assert_sound(config, placement)
    assert placement.of("prober[0]").gpus != placement.of("learner[0]").gpus


def test_two_ranks_want_two_gpus_however_small_they_are() -> None:
    config = config_of(ranks=(2, 0.25))
    assert place(config, nodes_of(2), where="here").num_gpus == 2
    with pytest.raises(PlacementError, match="that no other rank has"):
        place(config, nodes_of(1), where="here")


def test_more_than_all_nodes_have_is_refused_with_both_sums() -> None:
    config = config_of(teachers=(1, 4, 4), ranks=(4, 0.5))
    with pytest.raises(PlacementError, match="asks for 6 GPUs in all, here has 5;"):
        place(config, nodes_of(4, 1), where="here")
    with pytest.raises(PlacementError, match="asks for 7 CPUs in all, here has 6;"):
        place(config, nodes_of(4, 4, cpus=3), where="here")


def test_actors_without_gpu_go_beside_the_gpus_while_there_is_room() -> None:
    config = config_of(teachers=(1, 1, 1), cpus=2)
    placement = place(config, nodes_of(0, 1, cpus=5), where="here")
    nodes = {actor.name: actor.node for actor in placement.actors}
    assert nodes == {"teacher[0]": 1, "learner[0]": 1, "rollout[0]": 0, "prober[0]": 0}


def test_a_slip_of_the_keyboard_is_refused_at_once() -> None:
    config = config_of(teachers=(2_000, 1, 1), prompts=2_000)
    with pytest.raises(PlacementError, match="at most 1,000 can be placed"):
        assumed_placement(config)
