"""Adapters, and ranks that share sequences, on real DeepSpeed, against plain torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.contract.learner_ranks import (
    Oracle,
    TwoRanks,
    Weights,
    held_weights,
    learner_config,
    make_batch,
    open_learner,
    run_two_ranks,
    step_batches,
    take_step,
)
from tests.tiny import make_model
from topd_ray.errors import TopdError
from topd_ray.models.tensors import read_weights

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.distributed"),
]
TARGETS = ["q_proj", "v_proj", "up_proj"]
LORA = {"rank": 40, "alpha": 80.0, "targets": TARGETS}
# The first step of AdamW moves every number by lr: large enough to show in the loss.
FIELDS = {"lora": LORA, "lr": 1e-3}
SHARING = {
    "zero_stage": 3,
    "num_ranks": 2,
    "sequence_parallel": 2,
    "gradient_checkpointing": True,
}
SHARDED = (2, 3)
"""ZeRO stages of two ranks."""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and adapters large enough for ZeRO 3 to shard them; a tied head."""
    folder = tmp_path_factory.mktemp("student")
    return make_model(folder, hidden=256, layers=1, seed=6, tied=True)


@pytest.fixture(scope="module")
def ranks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def two_ranks(student: Path, ranks_folder: Path) -> TwoRanks:
    configs = {
        str(stage): learner_config(zero_stage=stage, num_ranks=2, **FIELDS)
        for stage in SHARDED
    }
    configs["shared"] = learner_config(**SHARING)
    cases = {case: (config, student, "hidden") for case, config in configs.items()}
    return run_two_ranks(cases, ranks_folder)


def assert_close(got: Weights, want: Weights, *, lr: float = 1e-3) -> None:
    """AdamW moves a number by up to lr, also where its gradient is rounding alone."""
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(
            got[name], array, rtol=0, atol=0.1 * lr, err_msg=name
        )


def assert_identical(got: Weights, want: Weights) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize("stage", SHARDED)
def test_two_ranks_take_the_steps_of_plain_adamw_on_adapters(
    two_ranks: TwoRanks, student: Path, stage: int
) -> None:
    outcome = two_ranks[str(stage)][0]
    oracle = Oracle(learner_config(**FIELDS), student)
    # the second step is skipped: rank 1's loss is not finite there
    for version, weights in ((0, outcome.after_first), (2, outcome.after_third)):
        batches = [batch for rank in step_batches(version) for batch in rank]
        loss, norm = oracle.step(batches)
        assert outcome.reports[version].loss == pytest.approx(loss, rel=1e-5)
        assert outcome.reports[version].grad_norm == pytest.approx(norm, rel=1e-4)
        assert_close(weights, oracle.weights())
    assert_identical(outcome.after_skip, outcome.after_first)


def test_two_ranks_that_share_sequences_take_the_steps_of_one(
    two_ranks: TwoRanks, student: Path
) -> None:
    mine, theirs = two_ranks["shared"]
    assert repr(mine.reports) == repr(theirs.reports)  # nan is no equal of itself
    oracle = Oracle(learner_config(), student)
    for version, weights in ((0, mine.after_first), (2, mine.after_third)):
        batches = step_batches(version)[0]
        loss, norm = oracle.step(batches)
        report = mine.reports[version]
        assert report.num_tokens == sum(len(b.response_ids_T) for b in batches)
        assert report.loss == pytest.approx(loss, rel=1e-5)
        assert report.grad_norm == pytest.approx(norm, rel=1e-5)
        assert_close(weights, oracle.weights(), lr=2e-5)
    assert [report.skipped for report in mine.reports] == [False, True, False, False]
    assert_identical(mine.after_third_again, mine.after_third)


@pytest.mark.parametrize("stage", SHARDED)
def test_a_checkpoint_of_adapters_continues_bit_for_bit(
    two_ranks: TwoRanks, ranks_folder: Path, student: Path, stage: int
) -> None:
    outcome = two_ranks[str(stage)][0]
    assert outcome.reports[3] == outcome.reports[2]
    assert_identical(outcome.after_third_again, outcome.after_third)
    # one rank of another stage goes on from it too
    alone = open_learner(learner_config(zero_stage=stage - 2, **FIELDS), student)
    try:
        alone.load(ranks_folder / f"checkpoint-{stage}")
        report = take_step(alone, [b for rank in step_batches(2) for b in rank])
        assert report.loss == pytest.approx(outcome.reports[2].loss, rel=1e-5)
        assert_close(held_weights(alone), outcome.after_third)
    finally:
        alone.close()


def test_a_checkpoint_holds_the_adapters_alone(
    two_ranks: TwoRanks, ranks_folder: Path
) -> None:
    assert two_ranks
    tensors = dict[str, torch.Tensor]()
    for file in (ranks_folder / "checkpoint-3" / "learner").glob("*.safetensors"):
        tensors |= load_file(file)
    names = {name.partition("/")[2] for name in tensors}
    assert len(names) == 2 * len(TARGETS)
    assert all(".lora_" in name for name in names)
    assert len(tensors) == 3 * len(names)  # the weight and both moments


@pytest.mark.parametrize("stage", [0, 1])
def test_one_rank_takes_the_steps_of_plain_adamw_on_adapters(
    student_folder: Path, tmp_path: Path, stage: int
) -> None:
    config = learner_config(zero_stage=stage, **FIELDS)
    oracle = Oracle(config, student_folder)
    learner = open_learner(config, student_folder)
    start = {name: w.copy() for name, w in read_weights(student_folder)}
    assert_identical(held_weights(learner), start)
    for version in range(2):
        batches = step_batches(version)[0]
        loss, norm = oracle.step(batches)
        report = take_step(learner, batches)
        assert report.loss == pytest.approx(loss, rel=1e-5)
        assert report.grad_norm == pytest.approx(norm, rel=1e-4)
        assert_close(held_weights(learner), oracle.weights())
    moved = held_weights(learner)
    changed = {name for name in start if not np.array_equal(moved[name], start[name])}
    assert changed == {name for name in start if name.split(".")[-2] in TARGETS}
    learner.export(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert_identical(loaded, moved)
    learner.close()


@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_learn_in_bfloat16_and_merged_weights_are_its_bits(
    student_folder: Path, stage: int
) -> None:
    config = learner_config(zero_stage=stage, dtype="bfloat16", **FIELDS)
    learner = open_learner(config, student_folder)
    batch = make_batch([20, 12], seed=5)
    losses = [
        take_step(learner, [replace(batch, policy_version=version)]).loss
        for version in range(6)
    ]
    assert losses[-1] < losses[0]
    dtypes = {array.dtype for array in held_weights(learner).values()}
    assert dtypes == {np.dtype(np.uint16)}
    learner.close()


def test_a_checkpoint_of_other_targets_is_refused(
    student_folder: Path, tmp_path: Path
) -> None:
    learner = open_learner(learner_config(**FIELDS), student_folder)
    learner.save(tmp_path)
    learner.close()
    other = {"lora": LORA | {"targets": ["q_proj", "o_proj"]}}
    learner = open_learner(learner_config(**other), student_folder)
    with pytest.raises(TopdError, match=r"holds no weight/.*o_proj.*another student"):
        learner.load(tmp_path)
    learner.close()
