"""Which models can be split over how many GPUs."""

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_experts, make_model
from topd_ray.config import EngineConfig
from topd_ray.errors import UserError
from topd_ray.models.splits import check_splits


@pytest.fixture(scope="module", name="dense")
def _dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 heads, 1 of them for keys; inner width 64."""
    folder = tmp_path_factory.mktemp("dense")
    return make_model(folder, hidden=32, layers=1, seed=0, tied=True)


@pytest.fixture(scope="module", name="experts")
def _experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 heads, 4 experts of inner width 16."""
    return make_experts(tmp_path_factory.mktemp("experts"))


def check(folder: Path, parts: int, **fields: Any) -> None:
    engine = EngineConfig(tensor_parallel=parts, gpus=parts, **fields)
    check_splits(folder, engine, field="teacher.engine")


@pytest.mark.parametrize("parts", [1, 2])
def test_parts_that_divide_the_heads_are_taken(
    dense: Path, experts: Path, parts: int
) -> None:
    check(dense, parts)
    check(experts, parts)


@pytest.mark.parametrize("parts", [3, 4])
def test_parts_that_do_not_are_refused_with_both_numbers(
    dense: Path, parts: int
) -> None:
    with pytest.raises(
        UserError,
        match=rf"teacher\.engine\.tensor_parallel={parts} does not divide"
        r" num_attention_heads=2 of .*; set it to a divisor of 2",
    ):
        check(dense, parts)
    check(dense, parts, backend="hf")  # which is not split


def test_key_heads_are_dealt_out_or_copied_evenly(
    dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"num_attention_heads": 12, "num_key_value_heads": 4}
    monkeypatch.setattr("topd_ray.models.splits.config_of_text_model", lambda _: config)
    for parts in (1, 2, 4, 12):
        check(dense, parts)
    for parts in (3, 6):
        with pytest.raises(UserError, match="neither a divisor nor a multiple of num_"):
            check(dense, parts)


def test_whole_experts_need_experts(dense: Path, experts: Path) -> None:
    check(experts, 2, expert_parallel=True)
    with pytest.raises(UserError, match=r"expert_parallel=True .* has no experts"):
        check(dense, 2, expert_parallel=True)


def test_slices_of_experts_are_equal_and_whole_experts_need_none(
    experts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"num_attention_heads": 8, "num_experts": 8, "moe_intermediate_size": 6}
    monkeypatch.setattr("topd_ray.models.splits.config_of_text_model", lambda _: config)
    check(experts, 4, expert_parallel=True)
    with pytest.raises(UserError, match="moe_intermediate_size=6"):
        check(experts, 4)
