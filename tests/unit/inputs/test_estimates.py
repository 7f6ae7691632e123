"""Terms of an actor's memory; benchmarks/bench_memory.py compares the sums."""

from dataclasses import replace
from typing import Any

import pytest

from tests.tiny import VOCAB, make_model
from topd_ray.config import Config, LoraConfig, parse_config
from topd_ray.inputs.estimates import (
    GIB,
    ModelSizes,
    engine_gib,
    learner_gib,
    prober_gib,
    sizes_of,
    teacher_gib,
)

STUDENT = ModelSizes(parameters=5e8, rows=150_000, width=900, inner=4800, layers=24)
TEACHER = ModelSizes(parameters=2e9, rows=150_000, width=1500, inner=9000, layers=28)
NOTHING = ModelSizes(parameters=0.0)


def config_of(**sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "prompts": {"path": "p", "per_step": 8, "max_tokens": 100},
        "rollout": {"samples_per_prompt": 2, "max_response_tokens": 400},
        "teacher": {"model": "acme/teacher"},
        "learner": {"model": "acme/student"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return parse_config(values, source="test")


@pytest.mark.parametrize(
    ("learner", "bytes_a_parameter"),
    [
        ({"dtype": "bfloat16"}, 2 + 4 + 12),
        ({"dtype": "float32"}, 4 + 4 + 8),
        ({"dtype": "float32", "num_ranks": 2}, 4 + (4 + 8) / 2),
        ({"dtype": "float32", "zero_stage": 1, "num_ranks": 2}, 4 + 4 + 8 / 2),
        ({"dtype": "float32", "zero_stage": 2, "num_ranks": 2}, 4 + (4 + 8) / 2),
        ({"dtype": "bfloat16", "zero_stage": 1, "num_ranks": 2}, 2 + (4 + 12) / 2),
        ({"dtype": "bfloat16", "zero_stage": 3, "num_ranks": 2}, (2 + 4 + 12) / 2),
    ],
)
def test_a_rank_holds_weights_gradients_and_states(
    learner: dict[str, Any], bytes_a_parameter: float
) -> None:
    config = config_of(learner=learner)
    model = ModelSizes(parameters=1e9)
    more = learner_gib(config, model, NOTHING) - learner_gib(config, NOTHING, NOTHING)
    assert more == pytest.approx(1e9 * bytes_a_parameter / GIB)


def test_adapters_alone_have_gradients_and_states() -> None:
    """Two ranks of ZeRO 2 in bfloat16; neither the head nor a layer has a gradient."""
    sharded = {"zero_stage": 2, "num_ranks": 2}
    small = replace(STUDENT, adapters=1_000_000)
    all_weights = learner_gib(config_of(learner=sharded), STUDENT, TEACHER)
    lora = config_of(learner=sharded | {"lora": {}})
    states = (4 + 12) / 2
    saved = states * (STUDENT.parameters - 1e6) - 2 * 1e6 + (4 + 2) * STUDENT.head
    assert all_weights - learner_gib(lora, small, TEACHER) == pytest.approx(saved / GIB)


def test_fewer_tokens_and_checkpointing_lower_the_activations() -> None:
    def gib(**sections: dict[str, Any]) -> float:
        return learner_gib(config_of(**sections), STUDENT, TEACHER)

    whole = gib()  # 16 rollouts of 500 tokens in one micro-batch
    assert gib(windows={"token_budget": 4000}) < gib(windows={"token_budget": 8000})
    assert gib(windows={"token_budget": 8000}) == whole
    assert gib(windows={"token_budget": 9000}) == whole
    assert gib(windows={"token_budget": 1}) == gib(windows={"token_budget": 500})
    assert gib(learner={"gradient_checkpointing": True}) < whole
    assert gib(learner={"num_ranks": 2}) < whole
    # Two ranks that share sequences hold half of the tokens, as two that do not.
    sharded = {"num_ranks": 2, "zero_stage": 3}
    shared = gib(learner=sharded | {"sequence_parallel": 2})
    assert shared == pytest.approx(gib(learner=sharded))


def test_only_the_signal_hidden_needs_the_teachers_head() -> None:
    hidden = learner_gib(config_of(), STUDENT, TEACHER)
    topk = learner_gib(config_of(teacher={"signal": "topk"}), STUDENT, TEACHER)
    assert hidden - topk == pytest.approx(2 * TEACHER.head / GIB)


def test_an_engine_on_a_gpu_is_counted_by_its_weights() -> None:
    engine = config_of(rollout={"engine": {"gpus": 1}}).rollout.engine
    assert engine_gib(STUDENT, engine) == pytest.approx(1e9 / GIB)


def test_an_engine_on_a_cpu_has_its_cache_and_libraries() -> None:
    engine = config_of(rollout={"engine": {"kv_cache_gib": 3}}).rollout.engine
    less = config_of(rollout={"engine": {"kv_cache_gib": 1}}).rollout.engine
    assert engine_gib(STUDENT, engine) - engine_gib(STUDENT, less) == pytest.approx(2)
    assert engine_gib(STUDENT, less) > 1 + 1e9 / GIB


def test_a_teacher_holds_a_float32_head_beside_its_engine() -> None:
    config = config_of()
    more = teacher_gib(config, TEACHER) - engine_gib(TEACHER, config.teacher.engine)
    assert more == pytest.approx(4 * (TEACHER.head + 2 * 400 * TEACHER.rows) / GIB)


def test_on_a_gpu_that_head_is_in_the_format_of_the_engine() -> None:
    config = config_of(teacher={"engine": {"gpus": 1}})
    more = teacher_gib(config, TEACHER) - engine_gib(TEACHER, config.teacher.engine)
    assert more == pytest.approx((2 * TEACHER.head + 8 * 400 * TEACHER.rows) / GIB)


def test_a_prober_with_an_engine_is_an_engine() -> None:
    engine = {"dtype": "float32"}
    config = config_of(probe={"engine": engine})
    assert config.probe_engine is not None
    assert prober_gib(config, TEACHER) == engine_gib(TEACHER, config.probe_engine)
    assert prober_gib(config_of(), TEACHER) < 1.0


def test_sizes_come_from_the_folder_or_from_the_config(tmp_path) -> None:
    folder = make_model(tmp_path, hidden=16, layers=2, seed=0, tied=True)
    sizes = sizes_of(folder, 9.0)
    assert sizes is not None
    assert (sizes.rows, sizes.width, sizes.layers) == (len(VOCAB), 16, 2)
    assert 0 < sizes.parameters < 1e6
    assert sizes.inner > 0
    assert sizes_of(None, 9.0) == ModelSizes(parameters=9e9)
    assert sizes_of(None, None) is None
    lora = LoraConfig(rank=2, targets=("up_proj",))
    with_adapters = sizes_of(folder, None, lora=lora)
    assert with_adapters == replace(sizes, adapters=2 * 2 * (16 + 32))
    assert sizes_of(None, 9.0, lora=lora) == ModelSizes(parameters=9e9, adapters=0)
