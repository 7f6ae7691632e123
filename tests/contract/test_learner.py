"""The learner on real DeepSpeed, against plain torch; two ranks are two processes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.contract.learner_ranks import (
    TEACHER_WIDTH,
    Oracle,
    TwoRanks,
    Weights,
    held_weights,
    learner_config,
    make_batch,
    meeting,
    open_learner,
    poisoned,
    run_two_ranks,
    scored_by,
    step_batches,
    take_step,
)
from tests.tiny import VOCAB, make_model
from topd_ray.engines.deepspeed import DeepSpeedTraining
from topd_ray.engines.deepspeed_ranks import join_ranks
from topd_ray.errors import TopdError, UserError
from topd_ray.learner import LearnerActor
from topd_ray.learner.inputs import Signal, empty_batch
from topd_ray.messages import TrainBatch

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.distributed"),
]
STAGES = (0, 1, 2, 3)


CASES = [
    (0, False, "hidden"),
    (1, True, "topk"),
    (2, False, "sampled"),
    (3, False, "hidden"),
    (3, True, "hidden"),
]
"""ZeRO stage; whether the student's head is its embedding; what is known of the
teacher.
"""
Step = tuple[float, float, Weights]
"""Loss, gradient norm, weights after it."""
two_rank_cases = pytest.mark.parametrize(("stage", "tied", "signal"), CASES)


@pytest.fixture(scope="module")
def wide_students(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Matrices large enough for ZeRO 3 to shard them; by whether the head is tied."""
    return {
        tied: make_model(
            tmp_path_factory.mktemp("wide"), hidden=256, layers=1, seed=6, tied=tied
        )
        for tied in (False, True)
    }


@pytest.fixture(scope="module")
def ranks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks leave their checkpoints."""
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def two_ranks(wide_students, ranks_folder) -> TwoRanks:
    return run_two_ranks(
        {
            f"{stage}{tied}{signal}": (
                learner_config(
                    zero_stage=stage, num_ranks=2, gradient_checkpointing=True
                ),
                wide_students[tied],
                signal,
            )
            for stage, tied, signal in CASES
        },
        ranks_folder,
    )


@pytest.fixture(scope="module")
def expected(wide_students) -> dict[tuple[bool, Signal], list[Step]]:
    """The first and the third step (the second is skipped), by tied head and signal."""
    steps: dict[tuple[bool, Signal], list[Step]] = {}
    for tied, signal in {(tied, signal) for _, tied, signal in CASES}:
        oracle = Oracle(learner_config(), wide_students[tied], signal)
        steps[tied, signal] = []
        for version in (0, 2):
            batches = [
                batch for rank in step_batches(version, signal) for batch in rank
            ]
            steps[tied, signal].append((*oracle.step(batches), oracle.weights()))
    return steps


@pytest.fixture
def learner(request, student_folder) -> Iterator[LearnerActor]:
    """One rank; config fields (and the signal) come as the fixture's parameter."""
    fields = dict(getattr(request, "param", {}))
    signal = fields.pop("signal", "hidden")
    config = learner_config(**fields)
    actor = open_learner(config, student_folder, signal=signal)
    yield actor
    actor.close()


def assert_close(got: Weights, want: Weights) -> None:
    """AdamW moves a weight by up to lr = 2e-5 a step, whatever the size of its
    gradient.

    A gradient near AdamW's eps (1e-8) is rounding, and moves its weight by a share of
    that: up to a tenth, where ranks and the oracle add up in another order.
    """
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=2e-6, err_msg=name)


def assert_identical(got: Weights, want: Weights) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@two_rank_cases
def test_two_ranks_with_unequal_shares_take_the_step_of_one(
    two_ranks, expected, stage, tied, signal
):
    outcome, (loss, norm, weights) = (
        two_ranks[f"{stage}{tied}{signal}"][0],
        expected[tied, signal][0],
    )
    assert outcome.reports[0].loss == pytest.approx(loss, rel=1e-5)
    assert outcome.reports[0].grad_norm == pytest.approx(norm, rel=1e-5)
    assert_close(outcome.after_first, weights)


@two_rank_cases
def test_two_ranks_take_the_step_of_one_where_the_second_has_no_rollout(
    two_ranks, expected, stage, tied, signal
):
    outcome = two_ranks[f"{stage}{tied}{signal}"][0]
    loss, norm, weights = expected[tied, signal][1]
    batches = step_batches(2, signal)[0]
    report = outcome.reports[2]
    assert report.num_tokens == sum(len(batch.response_ids_T) for batch in batches)
    assert report.loss == pytest.approx(loss, rel=1e-5)
    assert report.grad_norm == pytest.approx(norm, rel=1e-5)
    assert_close(outcome.after_third, weights)


@two_rank_cases
def test_both_ranks_report_the_same_and_only_rank_0_publishes(
    two_ranks, stage, tied, signal
):
    mine, theirs = two_ranks[f"{stage}{tied}{signal}"]
    assert repr(mine.reports) == repr(theirs.reports)  # nan is no equal of itself
    assert theirs.after_first == {}


@two_rank_cases
def test_a_broadcast_brings_every_receiver_what_is_published(
    two_ranks, stage, tied, signal
):
    mine, theirs = two_ranks[f"{stage}{tied}{signal}"]
    assert len(mine.sent) == 3  # with the sender four ranks of a gloo group
    for received in mine.sent:
        assert list(received) == list(mine.after_first)
        assert_identical(received, mine.after_first)
    assert theirs.sent == []


@two_rank_cases
def test_a_loss_that_is_not_finite_on_one_rank_moves_nothing_on_any(
    two_ranks, expected, stage, tied, signal
):
    outcome = two_ranks[f"{stage}{tied}{signal}"][0]
    assert [report.skipped for report in outcome.reports] == [False, True, False, False]
    assert_identical(outcome.after_skip, outcome.after_first)
    loss, norm, weights = expected[tied, signal][
        1
    ]  # moments and learning rate as if it had not been
    assert outcome.reports[2].loss == pytest.approx(loss, rel=1e-5)
    assert outcome.reports[2].grad_norm == pytest.approx(norm, rel=1e-5)
    assert_close(outcome.after_third, weights)


@two_rank_cases
def test_a_checkpoint_continues_bit_for_bit(two_ranks, stage, tied, signal):
    outcome = two_ranks[f"{stage}{tied}{signal}"][0]
    assert outcome.reports[3] == outcome.reports[2]
    assert_identical(outcome.after_third_again, outcome.after_third)


@two_rank_cases
def test_one_rank_of_another_zero_stage_goes_on_where_two_were(
    two_ranks, ranks_folder, wide_students, stage, tied, signal
):
    outcome = two_ranks[f"{stage}{tied}{signal}"][0]
    config = learner_config(
        zero_stage=(stage + 1) % len(STAGES), gradient_checkpointing=True
    )
    alone = open_learner(config, wide_students[tied], signal=signal)
    try:
        alone.load(ranks_folder / f"checkpoint-{stage}{tied}{signal}")
        report = take_step(
            alone, [one for rank in step_batches(2, signal) for one in rank]
        )
        assert report.loss == pytest.approx(outcome.reports[2].loss, rel=1e-5)
        assert report.lr == outcome.reports[2].lr
        assert_close(held_weights(alone), outcome.after_third)
    finally:
        alone.close()


@two_rank_cases
def test_a_learner_that_follows_has_no_loss_against_its_own_hidden_states(
    two_ranks, stage, tied, signal
):
    """On every rank: under ZeRO 3 each holds but a part of the head before."""
    for outcome in two_ranks[f"{stage}{tied}{signal}"]:
        if signal == "hidden":
            assert abs(outcome.self_loss) < 1e-4
        else:
            assert outcome.self_loss is None


@pytest.mark.parametrize(
    "learner", [{"dtype": dtype} for dtype in ("float32", "bfloat16")], indirect=True
)
def test_the_head_that_is_followed_is_the_present_one_and_stays(learner, tmp_path):
    """In either dtype: no loss right after following, some once the student has moved
    on.
    """
    take_step(learner, [make_batch([9], seed=0)])
    learner.follow_teacher()
    learner.export(tmp_path / "student")
    bits = next(iter(held_weights(learner).values())).dtype == np.uint16
    batch = scored_by(
        tmp_path / "student",
        make_batch([12], seed=1, version=1),
        torch.bfloat16 if bits else torch.float32,
    )
    assert abs(learner.accumulate([batch]).opd) < 1e-4
    learner.step()
    for version in range(2, 5):  # L_traj moves it
        take_step(learner, [replace(batch, policy_version=version)])
    assert learner.accumulate([replace(batch, policy_version=5)]).opd > 1e-4


@pytest.mark.parametrize(
    "learner", [{"signal": "topk"}, {"signal": "sampled"}], indirect=True
)
def test_without_a_head_there_is_nothing_to_follow(learner, request):
    signal = request.node.callspec.params["learner"]["signal"]
    learner.follow_teacher()
    assert not take_step(learner, [make_batch([9, 6], seed=0, signal=signal)]).skipped


@pytest.mark.parametrize("learner", [{"signal": "topk"}], indirect=True)
def test_an_id_that_the_student_does_not_have_is_refused(learner):
    batch = make_batch([9], seed=0, signal="topk")
    ids_NM = batch.signal.ids_NM.copy()
    ids_NM[2, 1] = len(VOCAB)
    odd = replace(batch, signal=replace(batch.signal, ids_NM=ids_NM))
    with pytest.raises(
        UserError, match=f"names id {len(VOCAB)}, .* has {len(VOCAB)} ids"
    ):
        learner.accumulate([odd])


@pytest.mark.parametrize("clip", [0.05, 1e6])
@pytest.mark.parametrize("stage", [0, 2])
def test_one_rank_takes_the_steps_of_plain_adamw(student_folder, stage, clip):
    config = learner_config(zero_stage=stage, clip=clip)
    oracle = Oracle(config, student_folder)
    learner = open_learner(config, student_folder)
    for version in range(3):
        batches = step_batches(version)[0]
        loss, norm = oracle.step(batches)
        report = take_step(learner, batches)
        assert report.loss == pytest.approx(loss, rel=1e-5)
        assert report.grad_norm == pytest.approx(norm, rel=1e-5)
        assert (norm > clip) == (clip < 1)
        assert_close(held_weights(learner), oracle.weights())
    learner.close()


def test_the_report_counts_and_divides_by_response_tokens(learner):
    batches = step_batches(0)[0]
    sums = [learner.accumulate([batch]) for batch in batches]
    report = learner.step()
    assert report.num_tokens == sum(len(batch.response_ids_T) for batch in batches)
    assert report.num_window_positions == sum(len(batch.window_Q) for batch in batches)
    assert report.loss_opd == pytest.approx(
        sum(s.opd for s in sums) / report.num_tokens
    )
    assert report.loss_traj == pytest.approx(
        sum(s.traj for s in sums) / report.num_tokens
    )
    assert report.loss == pytest.approx(report.loss_opd + 0.3 * report.loss_traj)
    assert report.rollout_kl == pytest.approx(
        sum(s.rollout_kl for s in sums) / report.num_tokens
    )
    assert report.rollout_kl > 0
    assert (report.step, report.policy_version) == (1, 1)


@pytest.mark.parametrize(
    "learner",
    [{"zero_stage": stage, "dtype": "bfloat16"} for stage in STAGES],
    indirect=True,
)
def test_bfloat16_learns_from_float32_moments_and_publishes_its_bits(learner):
    batch = make_batch([20, 12], seed=5)
    losses = []
    for version in range(6):
        report = take_step(learner, [replace(batch, policy_version=version)])
        losses.append(report.loss)
    assert losses[-1] < losses[0]
    assert {array.dtype for array in held_weights(learner).values()} == {
        np.dtype(np.uint16)
    }


@pytest.mark.parametrize(
    "learner", [{"zero_stage": 2, "dtype": "bfloat16"}], indirect=True
)
def test_one_rank_adds_the_gradient_that_deepspeed_would_reduce(learner):
    optimizer = learner._engine._engine.optimizer
    added = _gradient(learner)
    learner.abandon_step()
    del optimizer.average_tensor  # uncovers DeepSpeed's reduction
    reduced = _gradient(learner)
    assert torch.equal(added, reduced)
    own_norm = optimizer.scaled_global_norm()
    del optimizer.scaled_global_norm  # uncovers DeepSpeed's norm
    assert own_norm == optimizer.scaled_global_norm() > 0


def _gradient(learner: LearnerActor) -> Tensor:
    """Return the accumulated gradient of two micro-batches."""
    learner.accumulate([make_batch([20, 12], seed=5), make_batch([9], seed=6)])
    [held] = learner._engine._engine.optimizer.averaged_gradients.values()
    gradient: Tensor = held.flat_partition.clone()
    return gradient


class Root(nn.Module):
    """A loss of w . x or its root, of which the derivative at 0 is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 1, bias=False)
        nn.init.constant_(self.inner.weight, 0.5)

    def forward(self, x: Tensor, root: bool) -> tuple[Tensor, ...]:
        product = self.inner(x).sum()
        return (product.sqrt() if root else product,)


@pytest.fixture(params=STAGES)
def root_engine(request) -> Iterator[DeepSpeedTraining]:
    module = Root()
    join_ranks(meeting(), rank=0, world_size=1)
    engine = DeepSpeedTraining(
        module,
        trained=module.inner,
        zero_stage=request.param,
        dtype=torch.float32,
        lr=0.1,
        lr_factor=lambda updates: 1.0 / (1 + updates),
        betas=(0.9, 0.98),
        weight_decay=0.0,
        clip=1.0,
        rank=0,
        world_size=1,
    )
    yield engine
    engine.close()


@pytest.mark.parametrize("reason", ["gradient", "asked"])
def test_a_skipped_step_leaves_no_trace(root_engine, reason):
    ones, zeros = torch.ones(1, 3), torch.zeros(1, 3)
    assert root_engine.accumulate(2 * ones, False) == (3.0,)
    if reason == "gradient":
        assert root_engine.accumulate(zeros, True) == (
            0.0,
        )  # 0 / 0 behind a finite loss
    outcome = root_engine.step(normaliser=2, skip=reason == "asked")
    assert outcome.skipped
    [(name, weight)] = root_engine.weights()
    assert name == "weight"
    np.testing.assert_array_equal(weight, np.full((1, 3), 0.5, np.float32))
    root_engine.accumulate(ones, False)
    root_engine.accumulate(ones, False)
    outcome = root_engine.step(normaliser=4)
    assert not outcome.skipped
    assert outcome.lr == 0.1  # the skipped step did not count
    assert outcome.grad_norm == pytest.approx(
        3**0.5 / 2
    )  # two gradients of (1, 1, 1), over 4
    [(_, weight)] = root_engine.weights()
    np.testing.assert_allclose(
        weight, np.full((1, 3), 0.4), rtol=1e-5
    )  # AdamW's first step is lr


def test_a_stale_batch_is_refused(learner):
    with pytest.raises(TopdError, match="policy_version 3, the learner holds 0"):
        learner.accumulate([make_batch([5], seed=0, version=3)])


@pytest.mark.parametrize(
    "batches", [[], [empty_batch("hidden", width=TEACHER_WIDTH, policy_version=0)]]
)
def test_a_step_without_a_token_is_refused(learner, batches: list[TrainBatch]):
    learner.accumulate(batches)
    with pytest.raises(TopdError, match="step 1: no response token"):
        learner.step()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_abandoned_step_leaves_no_trace(student_folder, stage, dtype):
    config = learner_config(zero_stage=stage, dtype=dtype)
    reports = []
    weights = []
    for abandons in (False, True):
        learner = open_learner(config, student_folder)
        take_step(learner, step_batches(0)[0])
        if abandons:
            learner.abandon_step()  # nothing is accumulated yet
            learner.accumulate(step_batches(1)[1])
            learner.abandon_step()
        reports.append(take_step(learner, step_batches(1)[0]))
        weights.append(held_weights(learner))
        learner.close()
    assert reports[1] == reports[0]
    assert_identical(weights[1], weights[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_learner_that_sleeps_between_steps_trains_as_one_that_does_not(
    student_folder, tmp_path, stage, dtype
):
    config = learner_config(zero_stage=stage, dtype=dtype)
    reports = []
    weights = []
    for sleeps in (False, True):
        learner = open_learner(config, student_folder)
        if sleeps:  # before the optimizer has moments
            learner.sleep()
            learner.wake()
        take_step(learner, step_batches(0)[0])
        if sleeps:
            learner.sleep()
            learner.sleep()
            for call in (
                lambda asleep: asleep.accumulate(step_batches(1)[0]),
                held_weights,
                lambda asleep: asleep.save(tmp_path),
            ):
                with pytest.raises(TopdError, match="the engine is asleep"):
                    call(learner)
            learner.wake()
            learner.wake()
        reports.append(take_step(learner, step_batches(1)[0]))
        if sleeps:
            learner.sleep()
            learner.wake()
        learner.save(tmp_path / str(sleeps))
        learner.load(tmp_path / str(sleeps))
        weights.append(held_weights(learner))
        learner.close()
    assert reports[1] == reports[0]
    assert_identical(weights[1], weights[0])


def test_a_learner_does_not_sleep_within_a_step_or_without_shards(learner):
    learner.accumulate([make_batch([5], seed=0)])
    with pytest.raises(TopdError, match="a learner sleeps between steps"):
        learner.sleep()
    learner.abandon_step()
    with pytest.raises(TopdError, match=r"set learner\.zero_stage to 1, 2"):
        learner.sleep()  # one rank in float32 runs ZeRO 0


def test_a_checkpoint_within_a_step_is_refused(learner, tmp_path):
    learner.accumulate([make_batch([5], seed=0)])
    with pytest.raises(TopdError, match="accumulated 1 micro-batches"):
        learner.save(tmp_path)


def test_loading_from_nowhere_is_an_error(learner, tmp_path):
    with pytest.raises(TopdError, match="no learner checkpoint"):
        learner.load(tmp_path)


def test_a_skipped_step_still_raises_the_policy_version(learner):
    report = take_step(learner, [poisoned(make_batch([5, 6], seed=0))])
    assert report.skipped
    assert (report.step, report.policy_version, learner.policy_version) == (1, 1, 1)
    assert not take_step(learner, [make_batch([5], seed=0, version=1)]).skipped


def test_published_weights_are_a_copy(learner):
    take_step(learner, [make_batch([9], seed=0)])
    published = held_weights(learner)
    kept = {name: array.copy() for name, array in published.items()}
    take_step(learner, [make_batch([9], seed=0, version=1)])
    assert_identical(published, kept)


def test_the_export_is_the_student_as_published(learner, tmp_path):
    take_step(learner, [make_batch([9, 4], seed=0)])
    learner.export(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    exported = {name: p.detach().numpy() for name, p in loaded.named_parameters()}
    assert_identical(exported, held_weights(learner))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert isinstance(loaded.lm_head.weight, torch.Tensor)
