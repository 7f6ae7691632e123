"""Which transport a placement allows, and which rank each engine has."""

import pytest

from topd_ray.config import WeightsConfig
from topd_ray.errors import UserError
from topd_ray.weights.plan import GpuPlacement, choose_transport, rank_offsets

Names = tuple[str, ...]


def placed(engines: list[str], ranks: list[str]) -> GpuPlacement:
    """Engines and ranks with the GPUs of a string each, e.g. "a:0 a:1"."""
    return GpuPlacement(
        engines=tuple(frozenset(gpus.split()) for gpus in engines),
        ranks=tuple(frozenset(gpus.split()) for gpus in ranks),
    )


CPU = placed([""], [""])
APART = placed(["a:0 a:1", "a:2 a:3"], ["b:0", "b:1"])
COLOCATED = placed(["a:0 a:1", "a:2 a:3"], ["a:0", "a:1", "a:2", "a:3"])
HALF = placed(["a:0", "a:1"], ["a:0"])
OTHER_RANK = placed(["a:1", "b:0"], ["a:0", "a:1"])


@pytest.mark.parametrize(
    ("placement", "staleness", "chosen"),
    [
        (CPU, 0, "store"),
        (APART, 0, "nccl"),
        (COLOCATED, 0, "ipc"),
        # rank 0's GPU holds an engine, and another engine has no rank
        (HALF, 0, "store"),
        # a rank above 0 takes no part in the broadcast
        (OTHER_RANK, 0, "nccl"),
        (APART, 1, "store"),
        (COLOCATED, 1, "store"),
    ],
)
def test_auto_takes_the_fastest_that_the_placement_allows(
    placement: GpuPlacement, staleness: int, chosen: str
) -> None:
    assert choose_transport(WeightsConfig(), placement, max_staleness=staleness) == (
        chosen
    )


@pytest.mark.parametrize(
    ("transport", "placement", "why"),
    [
        ("nccl", CPU, r"rollout\[0\] has no GPU"),
        ("ipc", CPU, r"rollout\[0\] has no GPU"),
        ("nccl", placed(["a:0"], [""]), r"learner\[0\] has no GPU"),
        ("ipc", APART, r"GPU a:0 of rollout\[0\] holds no learner rank"),
        ("ipc", HALF, r"GPU a:1 of rollout\[1\] holds no learner rank"),
        # the same index on another node is another GPU
        ("ipc", placed(["b:0"], ["a:0"]), r"GPU b:0 of rollout\[0\]"),
        ("nccl", HALF, r"rollout\[0\] and learner\[0\] share GPU a:0"),
        ("nccl", placed(["a:0", "a:0"], ["a:1"]), r"rollout\[0\] and rollout\[1\]"),
        ("gloo", APART, r"rollout\[0\] is on a GPU"),
    ],
)
def test_a_transport_that_the_placement_cannot_do_is_refused_by_name(
    transport: str, placement: GpuPlacement, why: str
) -> None:
    weights = WeightsConfig.model_validate({"transport": transport})
    with pytest.raises(UserError, match=rf"^weights\.transport={transport}: {why}"):
        choose_transport(weights, placement, max_staleness=0)


@pytest.mark.parametrize(
    ("transport", "placement"),
    [("store", HALF), ("nccl", APART), ("ipc", COLOCATED), ("gloo", CPU)],
)
def test_a_transport_that_is_possible_is_taken_as_asked_for(
    transport: str, placement: GpuPlacement
) -> None:
    weights = WeightsConfig.model_validate({"transport": transport})
    assert choose_transport(weights, placement, max_staleness=0) == transport


def test_engines_have_ranks_behind_the_learner_and_behind_one_another() -> None:
    assert rank_offsets([2, 1, 4]) == [1, 3, 4]
