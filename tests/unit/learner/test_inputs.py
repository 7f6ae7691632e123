"""A micro-batch that is padded to the length that a kernel needs."""

from pathlib import Path

import numpy as np
import torch

from tests.make import rollout
from tests.unit.learner.models import gradients, make
from tests.unit.learner.trees import TEACHER_WIDTH
from topd_ray.config import ObjectiveConfig
from topd_ray.learner.inputs import empty_batch, forward_inputs, padded
from topd_ray.messages import HiddenSignal, ScoredRollout, TrainBatch
from topd_ray.windows import pack


def micro_batch() -> TrainBatch:
    given = rollout(length=7)
    states_ND = np.random.default_rng(0).standard_normal((7, TEACHER_WIDTH))
    scored = ScoredRollout(
        rollout=given,
        signal=HiddenSignal(hidden_ND=states_ND.astype(np.float32)),
        token_loss_N=np.ones(7, np.float32),
        logq_N=np.zeros(7, np.float32),
        entropy_N=np.zeros(0, np.float32),
    )
    objective = ObjectiveConfig(lambda_traj=0.0)
    (batch,) = pack(
        [scored],
        None,
        threshold=0.0,
        objective=objective,
        token_budget=100,
        run_seed=0,
    )
    return batch


def test_padding_changes_neither_losses_nor_gradient(student_folder: Path) -> None:
    model = make(student_folder)
    batch = micro_batch()
    short = forward_inputs(batch, num_ids=model.num_ids)
    long = forward_inputs(padded(batch, 128), num_ids=model.num_ids)
    assert len(short[0]) < 128 == len(long[0])
    for got, want in zip(model(*long), model(*short), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    gradient = gradients(model, *short)
    for name, got in gradients(model, *long).items():
        torch.testing.assert_close(got, gradient[name], rtol=1e-5, atol=1e-6)


def test_a_micro_batch_that_is_long_enough_stays_as_it_is() -> None:
    batch = micro_batch()
    assert padded(batch, len(batch.input_ids_L)) is batch
    assert padded(batch, 1) is batch


def test_the_micro_batch_of_an_idle_rank_trains_nothing_at_any_length(
    student_folder: Path,
) -> None:
    model = make(student_folder)
    batch = padded(empty_batch("hidden", width=TEACHER_WIDTH, policy_version=0), 128)
    inputs = forward_inputs(batch, num_ids=model.num_ids)
    assert model(*inputs)[0].item() == 0.0
    assert not any(gradient.any() for gradient in gradients(model, *inputs).values())
