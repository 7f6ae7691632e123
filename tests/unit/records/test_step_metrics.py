"""What a run writes down: files that are whole, lines that are JSON, memory that
survives.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from topd_ray.config import Config, parse_config
from topd_ray.driver.checkpoint import open_checkpoint
from topd_ray.errors import UserError
from topd_ray.evaluation import Accuracy
from topd_ray.inputs.resources import make_plan
from topd_ray.messages import LossSums, StepReport
from topd_ray.records.display import Display
from topd_ray.records.metrics import Metrics, MetricsLog, step_metrics
from topd_ray.records.receipts import (
    ContinueReceipt,
    LearnedRound,
    LearnReceipt,
    ProbeReceipt,
    RolloutReceipt,
    ScoreReceipt,
    Span,
    StepReceipts,
)
from topd_ray.records.run_folder import RunFolder, write_json, write_whole
from topd_ray.records.timeline import busy_and_waits
from topd_ray.records.totals import RunTotals

SECOND = Span(5.0, 6.0)


def config(root: Path, **sections: object) -> Config:
    values = {
        "run": {"root": str(root), "name": "r"},
        "prompts": {"path": "p"},
        "teacher": {"model": "owner/teacher", "size_b": 30.0},
        "learner": {"model": "owner/student", "size_b": 4.0},
    }
    return parse_config(values | sections, source="test")


def metrics(step: int, **changes: float) -> Metrics:
    report = StepReport(
        step=step,
        policy_version=step,
        loss=1.5,
        loss_opd=1.0,
        loss_traj=0.5,
        rollout_kl=0.01,
        grad_norm=2.0,
        lr=1e-3,
        num_tokens=100,
        num_window_positions=40,
        skipped=False,
    )
    receipts = StepReceipts(
        rollouts=[
            RolloutReceipt(
                rollout_ids=("a", "b"),
                policy_version=step - 1,
                num_tokens=100,
                num_truncated=1,
                entropy_sum=1.0,
                span=Span(10.0, 12.0),
            )
        ],
        scores=[
            ScoreReceipt(
                num_tokens=100,
                num_sequence_tokens=(70, 50),
                num_candidates=4,
                loss_sum=50.0,
                span=SECOND,
            )
        ],
        probes=[
            ProbeReceipt(
                distances=(0.2, 0.4, 0.6),
                threshold_distances=(0.2, 0.4, 0.6),
                num_windows=4,
                num_unconverged=1,
                span=SECOND,
            )
        ],
        continued=[
            ContinueReceipt(
                num_tokens=90, num_prefix_tokens=80, num_cached_tokens=64, span=SECOND
            )
        ],
        rounds=[
            LearnedRound(
                (("a",), ("b",)),
                [
                    LearnReceipt(
                        sums=LossSums(num_tokens=50), num_divergent=1, span=SECOND
                    )
                ]
                * 2,
            )
        ],
    )
    shares = busy_and_waits([], began_s=0, ended_s=3, actors=["rollout[0]"])
    return (
        step_metrics(report, receipts, sync_s=0.1)
        | shares
        | {"step/wall_s": 3.0, "step/cpu_s": 1.5}
        | changes
    )


def test_metrics_of_a_step_are_sums_and_shares_of_its_receipts() -> None:
    found = metrics(3)
    assert found["rollout/truncated_frac"] == 0.5
    assert found["teacher/mean_token_loss"] == 0.5
    assert found["probe/mean_d_ot"] == pytest.approx(0.4)
    assert found["windows/divergent_frac"] == 0.5
    assert found["learner/busy_s"] == 2.0
    assert found["rollout/busy_s"] == found["probe/busy_s"] == 2.0
    assert found["probe/cached_frac"] == 0.8
    assert found["rollout/staleness"] == 0


def test_a_log_line_is_strict_json_even_for_a_step_that_blew_up(tmp_path: Path) -> None:
    folder = RunFolder.create(config(tmp_path))
    with MetricsLog(config(tmp_path), folder, last_step=0) as log:
        log.log(metrics(1, loss=math.nan))
    (line,) = folder.metrics.read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None


def test_a_resumed_log_forgets_the_steps_that_will_be_done_again(
    tmp_path: Path,
) -> None:
    folder = RunFolder.create(config(tmp_path))
    with MetricsLog(config(tmp_path), folder, last_step=0) as log:
        for step in (1, 2, 3):
            log.log(metrics(step))
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "lo')  # the write that a kill cut short
    with MetricsLog(config(tmp_path), folder, last_step=2) as log:
        log.log(metrics(3))
    steps = [
        json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()
    ]
    assert steps == [1, 2, 3]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_whole(target, "old")
    with pytest.raises(TypeError):
        write_json(target, {"unwritable": object()})
    assert target.read_text() == "old"
    write_json(target, {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pointer_to_a_lost_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    folder = RunFolder.create(config(tmp_path))
    assert open_checkpoint(folder) is None
    folder.checkpoints.mkdir()
    (folder.checkpoints / "latest").write_text("step_7\n")
    with pytest.raises(UserError, match=r"latest: names 'step_7', there is none"):
        open_checkpoint(folder)


def test_totals_survive_a_checkpoint() -> None:
    totals = RunTotals()
    totals.add_step(metrics(1))
    totals.add_step(metrics(2))
    totals.add_seconds("start", 4.0)
    again = RunTotals(**json.loads(json.dumps(totals.state())))
    assert again == totals
    assert (again.num_candidates, again.num_divergent, again.stage_s["rollout"]) == (
        8,
        4,
        4.0,
    )
    assert again.cpu_s == 3.0


def test_the_plan_counts_actors_gpus_memory_and_tokens(tmp_path: Path) -> None:
    plan = make_plan(
        config(
            tmp_path,
            prompts={"path": "p", "per_step": 2},
            rollout={
                "samples_per_prompt": 4,
                "max_response_tokens": 1000,
                "num_engines": 2,
            },
            learner={
                "model": "owner/student",
                "size_b": 4.0,
                "num_ranks": 2,
                "zero_stage": 3,
                "gpus": 1,
            },
        )
    )
    by_name = {role.name: role for role in plan.roles}
    assert (plan.rollouts_a_step, plan.student_tokens_a_step) == (8, 8000)
    assert plan.teacher_tokens_a_step == 8 * 22 * 50
    assert by_name["teacher"].gib > 30e9 * 2 / 2**30
    assert by_name["learner"].gib > 4e9 * (2 + 4 + 12) / 2 / 2**30


@given(right=st.integers(0, 500), wrong=st.integers(0, 500))
def test_the_interval_holds_the_share_and_stays_within_0_and_1(
    right: int, wrong: int
) -> None:
    accuracy = Accuracy(num_problems=right + wrong, num_correct=right)
    low, high = accuracy.interval
    if right + wrong == 0:
        assert math.isnan(low)
        assert math.isnan(high)
    else:
        rounding = 1e-12
        assert -rounding <= low <= accuracy.share + rounding
        assert accuracy.share - rounding <= high <= 1 + rounding


def test_wilson_interval_of_a_known_case() -> None:
    low, high = Accuracy(num_problems=100, num_correct=50).interval
    assert (low, high) == (
        pytest.approx(0.40383, abs=1e-5),
        pytest.approx(0.59617, abs=1e-5),
    )


def test_off_a_terminal_each_step_is_one_line() -> None:
    console = Console(force_terminal=False, width=60, record=True)
    with Display("topd r", total_steps=2, started_s=0.0, console=console) as display:
        display.step(metrics(1), memory_gb=1.5)
        display.step(metrics(2), memory_gb=1.5)
    lines = [line for line in console.export_text().splitlines() if "step" in line]
    assert len(lines) == 2
    assert "divergent 50% of 4  D_OT 0.400  staleness 0" in lines[0]


@pytest.mark.parametrize(
    ("sections", "tokens"),
    [
        ({"run": {"method": "opd"}}, 0),
        ({"run": {"method": "trd"}}, 1000),
        ({"run": {"method": "trd"}, "rewrite": {"max_response_tokens": 1200}}, 1200),
        ({"run": {"method": "takeover"}}, 1000),
        ({"run": {"method": "takeover"}, "takeover": {"tokens": 64}}, 64),
        (
            {"run": {"method": "takeover"}, "takeover": {"verdict": "d_ot"}},
            1000 + 3 * 50,
        ),
    ],
)
def test_a_plan_counts_what_the_teacher_decodes(
    sections: Any, tokens: int, tmp_path: Path
) -> None:
    plan = make_plan(
        config(
            tmp_path,
            prompts={"path": "p", "per_step": 2},
            rollout={"samples_per_prompt": 4, "max_response_tokens": 1000},
            learner={"model": "owner/student", "size_b": 4.0},
            **sections,
        )
    )
    assert plan.teacher_tokens_a_step == 8 * tokens
