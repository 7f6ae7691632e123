"""What each GPU holds, added up again from the sizes of the models."""

import re
from pathlib import Path
from typing import Any

import pytest

from topd_ray.actors.placement import ClusterNode, assumed_placement, place
from topd_ray.config import Config, load_config
from topd_ray.errors import UserError
from topd_ray.inputs.estimates import PUBLISHED
from topd_ray.inputs.gpu_memory import (
    GpuMemory,
    cached_tokens,
    gpu_memory,
    refuse_too_little_memory,
)
from topd_ray.inputs.turns import roles_by_turns

ROOT = Path(__file__).parents[3]
H100 = ROOT / "configs" / "qwen3-30b-a3b-to-4b-4xh100.yaml"
SHIPPED = [
    file
    for file in sorted((ROOT / "configs").glob("*.yaml"))
    if load_config(file).cluster.gpu_memory_gib is not None
    and not roles_by_turns(load_config(file), assumed_placement(load_config(file)))
]
"""Those whose roles take turns are in test_turns.py."""
PAPER = ROOT / "configs" / "qwen3-30b-a3b-to-4b-4xh100-colocated.yaml"
GIB = 2**30


def memory_of(*overrides: str, file: Path = H100) -> tuple[Config, list[GpuMemory]]:
    config = load_config(file, overrides)
    return config, gpu_memory(config, assumed_placement(config))


def parts_of(gpus: list[GpuMemory], actor: str) -> dict[str, float]:
    """What an actor holds on the first of its GPUs."""
    found = next(a for gpu in gpus for a in gpu.actors if a.actor == actor)
    assert found.parts is not None
    return found.parts


def test_weights_and_optimizer_of_the_papers_pair_are_those_of_its_sizes() -> None:
    _, gpus = memory_of(file=PAPER)
    student = 4.02e9
    teacher = 30.5e9
    assert len(gpus) == 4
    rank = parts_of(gpus, "learner[2]")
    # ZeRO 2 over four ranks: all weights in bfloat16; a quarter of the float32
    # gradients, of the float32 weights and of both moments.
    assert rank["weights"] == pytest.approx(2 * student / GIB)
    assert rank["gradients"] == pytest.approx(4 * student / 4 / GIB)
    assert rank["optimizer"] == pytest.approx(12 * student / 4 / GIB)
    assert "gathered" not in rank
    rollout = parts_of(gpus, "rollout[1]")
    assert rollout["weights"] == pytest.approx(2 * student / 2 / GIB)
    assert rollout["cache"] == 8
    scorer = parts_of(gpus, "teacher[0]")
    assert scorer["weights"] == pytest.approx(2 * teacher / 4 / GIB)
    assert scorer["cache"] == 4
    # The head in bfloat16, and 1,024 positions of float32 logits twice.
    head = 151_936 * 2048
    logits = 2 * 1024 * 151_936
    assert scorer["scoring"] == pytest.approx((2 * head + 4 * logits) / GIB)
    assert "scoring" not in (gpus[1].actors[2].parts or {})


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_sum_of_a_gpu_is_that_of_its_actors_and_fits_the_card(file: Path) -> None:
    config, gpus = memory_of(file=file)
    assert gpus
    for gpu in gpus:
        total = sum(gib for actor in gpu.actors for gib in (actor.parts or {}).values())
        assert gpu.gib == pytest.approx(total)
        assert gpu.margin_gib == pytest.approx(gpu.card_gib - total)
        assert gpu.margin_gib > 0
    assert {a.actor for gpu in gpus for a in gpu.actors} == {
        actor.name for actor in assumed_placement(config).actors if actor.gpus
    }
    refuse_too_little_memory(config, gpus)


def test_with_zero_3_no_part_of_a_rank_is_the_whole_student() -> None:
    _, gpus = memory_of(
        "learner.model=Qwen/Qwen3-32B",
        "learner.size_b=32.76",
        "learner.zero_stage=3",
        file=PAPER,
    )
    rank = parts_of(gpus, "learner[0]")
    whole = 2 * 32.76e9 / GIB
    assert rank["weights"] == pytest.approx(whole / 4)
    # DeepSpeed bounds what it gathers at a time; the student's size does not count.
    assert rank["gathered"] == pytest.approx(2 * 1e9 / GIB)


def test_all_roles_of_the_paper_stay_on_four_cards_together() -> None:
    config, gpus = memory_of(file=PAPER)
    refuse_too_little_memory(config, gpus)
    # By hand, from the same models: 71.5 GiB with ZeRO 2.
    assert [gpu.gib for gpu in gpus[1:]] == pytest.approx([71.5] * 3, rel=0.08)


def test_too_little_memory_is_refused_with_the_sum() -> None:
    config, gpus = memory_of("cluster.gpu_memory_gib=24", file=PAPER)
    with pytest.raises(UserError) as caught:
        refuse_too_little_memory(config, gpus)
    message = str(caught.value)
    assert f"GPU 0 of node 0 would hold {gpus[0].gib:.1f} GiB and has 24" in message
    assert "learner[0] " in message
    assert "+ optimizer 11.2 +" in message
    assert "teacher[0] " in message


def test_without_the_memory_of_a_card_nothing_is_compared() -> None:
    config, gpus = memory_of("cluster.gpu_memory_gib=null", file=PAPER)
    assert gpus[0].gib is not None
    assert gpus[0].margin_gib is None
    refuse_too_little_memory(config, gpus)


def test_a_model_of_unknown_size_has_no_sum() -> None:
    config, gpus = memory_of("learner.model=a/b", "learner.size_b=null")
    assert [gpu.gib is None for gpu in gpus] == [False, False, True, True]
    refuse_too_little_memory(config, gpus)


def test_an_engine_alone_on_its_gpu_has_what_is_left_of_its_share_as_cache() -> None:
    _, gpus = memory_of("teacher.engine.gpu_memory_utilization=0.8")
    parts = parts_of(gpus, "teacher[0]")
    share = sum(parts[what] for what in ("weights", "activations", "graphs", "cache"))
    assert share == pytest.approx(0.8 * 79.6)


@pytest.mark.parametrize(
    ("override", "part", "factor"),
    [
        ("rollout.engine.enforce_eager=true", "graphs", 0.0),
        ("rollout.engine.dtype=float32", "weights", 2.0),
        ("rollout.engine.kv_cache_gib=6", "cache", 0.5),
        ("rollout.engine.max_num_batched_tokens=16384", "activations", 1.0),
    ],
)
def test_a_field_of_an_engine_changes_its_part(
    override: str, part: str, factor: float
) -> None:
    before = parts_of(memory_of()[1], "rollout[0]")[part]
    after = parts_of(memory_of(override)[1], "rollout[0]")[part]
    assert after == pytest.approx(before * factor)


def test_fewer_tokens_of_a_step_need_fewer_activations() -> None:
    def activations(tokens: int) -> float:
        override = f"rollout.engine.max_num_batched_tokens={tokens}"
        return parts_of(memory_of(override)[1], "rollout[0]")["activations"]

    # Three vectors of the inner width and four of the model's, in bfloat16.
    a_token = 2 * (3 * 9728 + 4 * 2560)
    saved = activations(8192) - activations(2048)
    assert saved == pytest.approx(6144 * a_token / GIB)


def test_a_single_rank_at_stage_2_gathers_nothing_and_has_no_group() -> None:
    whole = parts_of(memory_of("learner.zero_stage=3")[1], "learner[0]")
    alone = ("learner.num_ranks=1", "learner.zero_stage=2")
    single = parts_of(memory_of(*alone)[1], "learner[0]")
    assert whole["gathered"] == pytest.approx(2e9 / GIB)
    assert "gathered" not in single
    assert single["context"] < whole["context"]


def test_a_cache_must_hold_one_sequence() -> None:
    config, gpus = memory_of("rollout.engine.kv_cache_gib=1")
    # Keys and values of 8 heads of 128, in 36 layers, in bfloat16.
    tokens = GIB // (2 * 2 * 8 * 128 * 36)
    assert cached_tokens(config.rollout.engine, PUBLISHED["Qwen3-4B"]) == tokens
    with pytest.raises(UserError) as caught:
        refuse_too_little_memory(config, gpus)
    assert str(caught.value) == (
        f"rollout.engine.kv_cache_gib=1 holds {tokens:,} tokens, and one sequence may"
        " have 8,851, so vLLM would not start; raise it to 1.22 or more"
    )
    config, gpus = memory_of("rollout.engine.kv_cache_gib=1.22")
    refuse_too_little_memory(config, gpus)


def printed(*overrides: str, capsys: Any, monkeypatch: Any, file: Path = H100) -> str:
    from topd_ray.commands.check import check

    monkeypatch.setenv("COLUMNS", "150")
    try:
        check(load_config(file, overrides))
    finally:
        output: str = capsys.readouterr().out
    return output


def test_the_map_is_printed_gpu_by_gpu_and_its_numbers_are_the_sums(
    capsys: Any, monkeypatch: Any
) -> None:
    output = printed(file=PAPER, capsys=capsys, monkeypatch=monkeypatch)
    _, gpus = memory_of(file=PAPER)
    assert "4 GPUs on 1 node of 4 (layout colocated)" in output
    # Three kinds of actor, four GPUs each, and they are the same four.
    in_all = next(line for line in output.splitlines() if "in all" in line)
    assert re.findall(r"\d+", in_all) == ["8", "11", "4"]
    for gpu in gpus:
        assert f"node 0 GPU {gpu.gpu} " in output
        assert f"of 79.6: {gpu.margin_gib:.1f} left" in output
    assert output.count(f" {gpus[0].gib:.1f} ") >= 1
    assert "the config is sound" in output


def test_a_config_that_fits_no_card_is_refused_after_its_map(
    capsys: Any, monkeypatch: Any
) -> None:
    with pytest.raises(UserError, match="would hold"):
        printed(
            "cluster.gpu_memory_gib=30",
            capsys=capsys,
            monkeypatch=monkeypatch,
            file=PAPER,
        )


def test_an_engine_that_new_weights_are_broadcast_to_has_room_for_two_buffers() -> None:
    apart = ("rollout.engine.gpus=1", "learner.gpus=1", "cluster.gpus_per_node=8")
    _, by_nccl = memory_of(*apart)
    _, by_store = memory_of(*apart, "weights.transport=store")
    assert parts_of(by_nccl, "rollout[1]")["new weights"] == 2.0
    assert "new weights" not in parts_of(by_nccl, "teacher[0]")
    assert "new weights" not in parts_of(by_store, "rollout[1]")


def test_a_transport_that_is_impossible_is_refused_by_the_placement_at_hand() -> None:
    apart = ("rollout.engine.gpus=1", "learner.gpus=1", "cluster.gpus_per_node=8")
    with pytest.raises(UserError, match=r"^weights\.transport=ipc: GPU .* holds no"):
        memory_of(*apart, "weights.transport=ipc")


def test_a_run_on_larger_nodes_than_topd_check_assumes_is_judged_by_those() -> None:
    split = ("teacher.engine.gpus=8", "teacher.engine.tensor_parallel=8")
    config = load_config(H100, [*split, "cluster.gpus_per_node=4"])
    with pytest.raises(UserError, match="the largest node has 4"):
        assumed_placement(config)
    placement = place(config, [ClusterNode(name="n", gpus=16)], where="here")
    assert len(gpu_memory(config, placement)) == 10
