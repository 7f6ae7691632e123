"""Counts -> figures, the average over contests, JSON."""

import io
import json

import pytest
from rich.console import Console

from topd_ray.evaluation.harness.report import make_report, report_table
from topd_ray.evaluation.harness.run import Answered
from topd_ray.evaluation.harness.task_names import TaskSampling


def answered(task: str, *counts: int, k: int = 4) -> Answered:
    return Answered(
        task=task,
        source="hub",
        sampling=TaskSampling(
            samples=k, temperature=0.6, top_p=0.95, max_tokens=100, seed=0
        ),
        num_correct_P=counts,
        num_truncated=1,
        num_tokens=10 * k * len(counts),
        samples=tuple({"response": ""} for _ in range(k * len(counts))),
    )


def test_a_task_s_figures_are_means_over_its_problems() -> None:
    report = make_report([answered("toy", 0, 1, 4)], model="m", backend="hf", seed=0)
    (one,) = report.tasks
    assert one.pass_at[1].value == pytest.approx((0 + 1 / 4 + 1) / 3)
    assert one.pass_at[2].value == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert one.pass_at[4].value == pytest.approx(2 / 3)
    assert one.mean_tokens == 10
    assert report.to_json()["average"] is None


def test_contests_are_averaged_with_equal_weight_and_others_are_left_out() -> None:
    tasks = [
        answered("aime24", 4, 4),
        answered("hmmt25_feb", 0, 0, 0, 2),
        answered("toy", 0),
    ]
    report = make_report(tasks, model="m", backend="hf", seed=0)
    assert report.averaged == ("aime24", "hmmt25_feb")
    assert report.average[1].value == pytest.approx((1 + 1 / 8) / 2)
    assert report.average[1].low < report.average[1].value < report.average[1].high


def test_the_average_goes_as_far_as_every_contest_was_sampled() -> None:
    tasks = [answered("aime24", 1, k=8), answered("aime25", 1, k=2)]
    assert list(make_report(tasks, model="m", backend="hf", seed=0).average) == [1, 2]


def test_the_json_holds_every_figure_and_how_it_was_drawn() -> None:
    report = make_report([answered("aime24", 0, 1)], model="m", backend="hf", seed=0)
    found = json.loads(json.dumps(report.to_json()))["tasks"]["aime24"]
    assert found["avg"] == found["pass_at"]["1"]
    assert found["avg"]["value"] == pytest.approx(1 / 8)
    assert list(found["pass_at"]) == ["1", "2", "4"]
    assert (found["samples"], found["temperature"], found["max_tokens"]) == (
        4,
        0.6,
        100,
    )
    assert (found["num_problems"], found["num_truncated"], found["source"]) == (
        2,
        1,
        "hub",
    )


def test_the_table_names_k() -> None:
    text = io.StringIO()
    console = Console(width=120, file=text)
    tasks = [answered("aime24", 0, 1), answered("aime25", 1, 1)]
    console.print(report_table(make_report(tasks, model="m", backend="hf", seed=0)))
    assert "Avg@4" in text.getvalue()
    assert "average of 2" in text.getvalue()
