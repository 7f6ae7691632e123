import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from topd_ray.messages import TrainBatch
from topd_ray.studies.correction import find_prefixes
from topd_ray.studies.local_stages import LocalStages
from topd_ray.studies.prefixes import Prefix, window_batch
from topd_ray.studies.window_gradients import gradient_pairs
from topd_ray.studies.window_learner import WindowLearner


@pytest.fixture
def stages(make_study) -> LocalStages:
    return LocalStages(make_study().load_run())


@pytest.fixture
def prefix(stages: LocalStages, make_study) -> Prefix:
    return find_prefixes(stages, make_study().correction)[0][0]


def learner_of(stages: LocalStages) -> WindowLearner:
    return WindowLearner(
        stages.config.learner,
        student_folder=stages.student_folder,
        teacher_folder=stages.teacher_folder,
        lr=1e-2,
        lambda_traj=stages.config.objective.lambda_traj,
    )


def batches(stages: LocalStages, prefix: Prefix) -> tuple[TrainBatch, TrainBatch]:
    objective = stages.config.objective
    return (
        window_batch(prefix, objective, with_plan=False),
        window_batch(prefix, objective, with_plan=True),
    )


def snapshot(learner: WindowLearner) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in learner.weights()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_restoring_puts_back_weights_and_optimizer_bit_for_bit(
    stages: LocalStages, prefix: Prefix
) -> None:
    opd, topd = batches(stages, prefix)
    learner = learner_of(stages)
    start = snapshot(learner)
    for _ in range(3):
        learner.update(topd)
    assert not same(snapshot(learner), start)
    learner.restore()
    assert same(snapshot(learner), start)
    # an optimizer that remembered anything would take another second step than a new
    # one
    fresh = learner_of(stages)
    for either in (learner, fresh):
        for _ in range(2):
            either.update(opd)
    assert same(snapshot(learner), snapshot(fresh))


def test_the_loss_of_the_window_is_the_reverse_kl_at_its_positions_alone(
    stages: LocalStages, prefix: Prefix
) -> None:
    ids = np.concatenate([prefix.token_ids, prefix.window.rollout.response_ids_N])
    with torch.no_grad():
        logp, logq = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(
                torch.tensor(ids[None].astype(np.int64))
            )
            .logits[0]
            .double()
            .log_softmax(-1)
            for folder in (stages.student_folder, stages.teacher_folder)
        )
    first = len(prefix.token_ids) - 1
    last = len(ids) - 1
    kl = (logp.exp() * (logp - logq)).sum(-1)[first:last].sum()
    opd, topd = batches(stages, prefix)
    learner = learner_of(stages)
    sums = learner.update(opd)
    assert sums.opd == pytest.approx(float(kl), rel=1e-5)
    assert sums.num_tokens == last - first
    assert sums.num_window_positions == 0
    learner.restore()
    assert learner.update(topd).opd == pytest.approx(float(kl), rel=1e-5)


def test_the_plan_s_loss_is_the_cross_entropy_of_its_rows(
    stages: LocalStages, prefix: Prefix
) -> None:
    _, topd = batches(stages, prefix)
    ids = np.concatenate([prefix.token_ids, prefix.window.rollout.response_ids_N])
    with torch.no_grad():
        student = AutoModelForCausalLM.from_pretrained(
            stages.student_folder, dtype=torch.float32
        )
        logits = student(torch.tensor(ids[None].astype(np.int64))).logits[0].double()
    logp_V = logits.log_softmax(-1).numpy()[len(prefix.token_ids) - 1 : -1]
    n_student = len(logp_V)
    n_teacher = len(prefix.teacher_ids)
    expected = 0.0
    for i, plan_K in enumerate(prefix.probe.plan_WKK[0, :n_student, :n_teacher]):
        target = np.zeros(logp_V.shape[1])
        for weight, token in zip(
            plan_K / plan_K.sum(), prefix.teacher_ids, strict=True
        ):
            target[token] += weight
        inside = target > 0
        expected += (
            target[inside] * (np.log(target[inside]) - logp_V[i, inside])
        ).sum()
    sums = learner_of(stages).update(topd)
    assert sums.num_window_positions == n_student
    assert sums.traj == pytest.approx(expected, rel=1e-4)


def test_updates_bring_the_loss_down_and_the_plan_changes_where_they_lead(
    stages: LocalStages, prefix: Prefix
) -> None:
    learner = learner_of(stages)
    ends = []
    for batch in batches(stages, prefix):
        losses = [learner.update(batch) for _ in range(5)]
        assert losses[-1].opd < losses[0].opd
        ends.append(snapshot(learner))
        learner.restore()
    assert not same(*ends)


def test_on_the_teachers_window_l_traj_is_the_cross_entropy_of_its_tokens(
    stages: LocalStages, prefix: Prefix
) -> None:
    batch = window_batch(prefix, stages.config.objective, with_plan=True, on="teacher")
    assert batch.response_ids_T.tolist() == prefix.teacher_ids.tolist()
    ids = np.concatenate([prefix.token_ids, prefix.teacher_ids])
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(
            stages.student_folder, dtype=torch.float32
        )
        logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0]
        logp = logits.double().log_softmax(-1)
    first = len(prefix.token_ids) - 1
    expected = -sum(float(logp[first + i, t]) for i, t in enumerate(prefix.teacher_ids))
    assert learner_of(stages).update(batch).traj == pytest.approx(expected, rel=1e-4)


def test_the_gradient_of_the_trajectory_loss_is_what_it_adds(
    stages: LocalStages, prefix: Prefix
) -> None:
    config = stages.config
    learner = learner_of(stages)
    (pair,) = gradient_pairs(learner, [prefix], config)
    opd, topd = batches(stages, prefix)
    vectors = []
    for batch in (opd, topd):
        learner.differentiate(batch)
        vectors.append(torch.cat([part.flatten() for part in learner.gradients()]))
    traj = (vectors[1] - vectors[0]) / config.objective.lambda_traj
    assert pair.opd_norm == pytest.approx(float(vectors[0].norm()), rel=1e-4)
    assert pair.traj_norm == pytest.approx(float(traj.norm()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(vectors[0], traj, dim=0)
    assert pair.cosine == pytest.approx(float(cosine), abs=1e-4)
    before = snapshot(learner)
    assert same(before, snapshot(learner_of(stages)))  # nothing was updated
