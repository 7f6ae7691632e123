"""Which roles take turns, by the config and by memory, and what cannot."""

import re
from pathlib import Path
from typing import Any

import pytest

from topd_ray.actors.placement import assumed_placement
from topd_ray.actors.roles import ROLES, sharing_roles
from topd_ray.config import Config, load_config
from topd_ray.errors import UserError
from topd_ray.inputs.gpu_memory import GpuMemory, gpu_memory, refuse_too_little_memory
from topd_ray.inputs.turns import host_gib, roles_by_turns

CONFIGS = Path(__file__).parents[3] / "configs"
PAPER = CONFIGS / "qwen3-30b-a3b-to-4b-4xh100-colocated.yaml"
PAIRS = CONFIGS / "qwen3-30b-a3b-to-4b-4xh100.yaml"
SMALL = CONFIGS / "qwen3-30b-a3b-to-4b-4x40gb.yaml"
LOCAL = CONFIGS / "local-toy.yaml"
ALL = frozenset(ROLES)
NONE = frozenset[str]()


def turns_of(file: Path, *overrides: str) -> frozenset[str]:
    config = load_config(file, overrides)
    return roles_by_turns(config, assumed_placement(config))


def memory_by_turns(file: Path = SMALL) -> tuple[Config, list[GpuMemory]]:
    config = load_config(file)
    placement = assumed_placement(config)
    return config, gpu_memory(config, placement, roles_by_turns(config, placement))


@pytest.mark.parametrize(
    ("file", "overrides", "expected"),
    [
        (PAPER, [], NONE),  # all of it fits together
        (PAPER, ["cluster.gpu_memory_gib=40"], ALL),
        (PAPER, ["cluster.gpu_memory_gib=30"], NONE),  # refused, as before
        (PAPER, ["cluster.gpu_memory_gib=null"], NONE),  # not compared
        (PAPER, ["cluster.turns=true"], ALL),
        (PAPER, ["cluster.gpu_memory_gib=40", "cluster.turns=false"], NONE),
        # The teachers have two GPUs for themselves.
        (PAIRS, ["cluster.turns=true"], {"rollout", "learner"}),
        (SMALL, [], ALL),
        (LOCAL, [], NONE),
        (LOCAL, ["cluster.turns=true", "learner.zero_stage=2"], ALL),
    ],
)
def test_roles_take_turns_where_they_fit_by_turns_alone(
    file: Path, overrides: list[str], expected: frozenset[str]
) -> None:
    assert turns_of(file, *overrides) == expected


def test_without_a_placement_the_config_alone_decides() -> None:
    inline = ["cluster.placement=inline", "learner.zero_stage=2"]
    engines = ["rollout.engine.backend=hf", "teacher.engine.backend=hf"]
    one = ["rollout.num_engines=1", "learner.num_ranks=1"]
    config = load_config(LOCAL, [*inline, *engines, *one])
    assert roles_by_turns(config, None) == NONE
    config = load_config(LOCAL, [*inline, *engines, *one, "cluster.turns=true"])
    assert roles_by_turns(config, None) == ALL


CANNOT_WAIT = {
    "takeover.stride=16": [
        "run.method=takeover",
        "takeover.verdict=confident",
        "takeover.keep=all",
    ],
    "probe.student=resample": [],
    "rollout.max_staleness=1": [],
    "weights.transport=ipc": [],
}


@pytest.mark.parametrize("field", CANNOT_WAIT)
def test_what_cannot_wait_for_a_turn_is_refused_with_both_fields_and_with_the_sum(
    field: str,
) -> None:
    overrides = [field, *CANNOT_WAIT[field]]
    name = re.escape(field)
    with pytest.raises(UserError, match=f"cluster.turns=true with {name}: "):
        load_config(PAPER, [*overrides, "cluster.turns=true"])
    wanted = rf"would hold 7\d\.\d GiB and has 40 .* take turns, with {name}: "
    with pytest.raises(UserError, match=wanted):
        turns_of(PAPER, *overrides, "cluster.gpu_memory_gib=40")
    assert turns_of(PAPER, *overrides) == NONE  # they fit together


@pytest.mark.parametrize(
    "field", ["learner.zero_stage=0", "cluster.layout=disaggregated"]
)
def test_turns_need_shards_and_gpus_that_are_shared(field: str) -> None:
    with pytest.raises(UserError, match=f"cluster.turns=true with {field}: "):
        load_config(LOCAL, [field, "cluster.turns=true", "learner.dtype=float32"])


def test_a_gpu_holds_one_role_awake_and_what_the_others_leave() -> None:
    config, gpus = memory_by_turns()
    refuse_too_little_memory(config, gpus)
    for gpu in gpus:
        assert gpu.margin_gib > 0
        by_role = {actor.role: actor for actor in gpu.actors}
        for role, gib in gpu.turns.items():
            others = [a for name, a in by_role.items() if name != role]
            awake = sum((by_role[role].parts or {}).values())
            assert gib == pytest.approx(awake + sum(a.asleep_gib for a in others))
        assert gpu.gib == max(gpu.turns.values())
        assert gpu.margin_gib == pytest.approx(gpu.card_gib - gpu.gib)
    rank, engine, teacher = gpus[0].actors
    # Contexts, graphs and buckets stay; so does the head that the teacher reads with.
    head = 2 * 151_936 * 2048 / 2**30
    assert rank.asleep_gib == pytest.approx(0.5 + 0.7 + 0.5 + head)
    assert engine.asleep_gib == pytest.approx(0.5 + 0.7 + 1.0)
    assert teacher.asleep_gib == pytest.approx(0.5 + 0.7 + 0.5 + 1.0 + head)


def test_the_host_has_room_for_weights_gradients_and_optimizer_of_all_roles() -> None:
    _, gpus = memory_by_turns()
    student, teacher = 4.022e9, 30.53e9
    # ZeRO 3 over four ranks: 2 + 4 + 12 bytes once; two engines of the student.
    expected = (18 * student + 2 * 2 * student + 2 * teacher) / 2**30
    assert host_gib(gpus) == {0: pytest.approx(expected, rel=0.002)}
    config = load_config(PAPER)
    assert host_gib(gpu_memory(config, assumed_placement(config))) == {}


def test_too_little_memory_by_turns_is_refused_with_the_sum_of_each_turn() -> None:
    config = load_config(SMALL, ["cluster.turns=true", "cluster.gpu_memory_gib=20"])
    placement = assumed_placement(config)
    gpus = gpu_memory(config, placement, roles_by_turns(config, placement))
    wanted = r"by turns, rollout \d+\.\d, teacher \d+\.\d, learner \d+\.\d; awake"
    with pytest.raises(UserError, match=wanted):
        refuse_too_little_memory(config, gpus)


def test_the_map_says_who_takes_turns_with_the_sums(
    capsys: Any, monkeypatch: Any
) -> None:
    from topd_ray.commands.check import check

    monkeypatch.setenv("COLUMNS", "150")
    check(load_config(SMALL))
    output = capsys.readouterr().out
    _, gpus = memory_by_turns()
    assert "by turns: rollout, teacher, learner; one works while" in output
    assert "weights travel by store" in output
    for role, gib in gpus[0].turns.items():
        assert re.search(rf"turn of {role} +│ +{gib:.1f} ", output)
    assert f"of 39.4: {gpus[0].margin_gib:.1f} left" in output
    assert "what sleeps on node 0 is up to 139 GiB of its host memory" in output


def test_roles_share_where_one_gpu_has_two_of_them() -> None:
    config = load_config(PAIRS)
    assert sharing_roles(assumed_placement(config)) == {"rollout", "learner"}
    config = load_config(PAIRS, ["rollout.engine.gpus=1", "learner.gpus=1"])
    assert sharing_roles(assumed_placement(config)) == NONE
