"""Report Avg@k, Pass@k and token counts of answered tasks, as JSON and as a table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from topd_ray.evaluation.harness.pass_at_k import (
    PassRate,
    estimate_pass_rate,
    pass_at_k,
    powers_of_two,
)
from topd_ray.evaluation.harness.task_names import CONTESTS, TaskSampling
from topd_ray.seeds import derive_seed

if TYPE_CHECKING:
    from rich.table import Table

    from topd_ray.evaluation.harness.run import Answered


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """The figures of one task."""

    task: str
    source: str
    sampling: TaskSampling
    num_problems: int
    pass_at: dict[int, PassRate]
    """Pass@k for each k; k = 1 is Avg@k, the mean over all responses."""
    num_truncated: int
    mean_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """All tasks of one evaluation, and the average of its contests."""

    model: str
    backend: str
    tasks: tuple[TaskReport, ...]
    averaged: tuple[str, ...]
    """Tasks in the average, each of equal weight; empty where fewer than two are."""
    average: dict[int, PassRate]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; k is a string, since keys of JSON are."""
        return {
            "harness": f"lm_eval {version('lm_eval')}",
            "model": self.model,
            "backend": self.backend,
            "tasks": {task.task: _task_json(task) for task in self.tasks},
            "average": (
                {"tasks": list(self.averaged), **_pass_json(self.average)}
                if self.averaged
                else None
            ),
        }


def make_report(
    answered: Sequence["Answered"], *, model: str, backend: str, seed: int
) -> EvaluationReport:
    """Return the estimates of every task; the seed fixes their intervals."""
    contests = [task for task in answered if task.task in CONTESTS]
    # An average of one contest would repeat its column.
    averaged = contests if len(contests) > 1 else []
    return EvaluationReport(
        model=model,
        backend=backend,
        tasks=tuple(_task_report(task, seed) for task in answered),
        averaged=tuple(task.task for task in averaged),
        average=_estimates(averaged, seed) if averaged else {},
    )


def _task_report(answered: "Answered", seed: int) -> TaskReport:
    return TaskReport(
        task=answered.task,
        source=answered.source,
        sampling=answered.sampling,
        num_problems=len(answered.num_correct_P),
        pass_at=_estimates([answered], seed),
        num_truncated=answered.num_truncated,
        mean_tokens=answered.num_tokens / len(answered.samples),
    )


def _estimates(groups: Sequence["Answered"], seed: int) -> dict[int, PassRate]:
    """Return Pass@k of the tasks together, for each power of two k that all allow.

    A task allows k up to the number of samples of each of its problems.
    """
    names = "+".join(group.task for group in groups)
    # Pass@k of the average needs k samples of every benchmark.
    most_samples = min(_num_samples(group.sampling) for group in groups)
    return {
        k: estimate_pass_rate(
            [
                pass_at_k(
                    np.asarray(group.num_correct_P),
                    num_samples=_num_samples(group.sampling),
                    k=k,
                )
                for group in groups
            ],
            # By name: an interval does not depend on the other tasks of the run.
            seed=derive_seed(seed, names, "bootstrap"),
        )
        for k in powers_of_two(most_samples)
    }


def _num_samples(sampling: TaskSampling) -> int:
    assert sampling.samples is not None, "answer_task sets every field"
    return sampling.samples


def _task_json(report: TaskReport) -> dict[str, Any]:
    return {
        "source": report.source,
        "num_problems": report.num_problems,
        **asdict(report.sampling),
        **_pass_json(report.pass_at),
        "num_truncated": report.num_truncated,
        "mean_tokens": report.mean_tokens,
    }


def _pass_json(estimates: dict[int, PassRate]) -> dict[str, Any]:
    """Return Pass@k by k, and Avg@k under a separate key: papers quote that figure."""
    return {
        "avg": asdict(estimates[1]),
        "pass_at": {str(k): asdict(rate) for k, rate in estimates.items()},
    }


def report_table(report: EvaluationReport) -> "Table":
    """Return a table with a column for each task and a row for each figure."""
    from rich.table import Table

    table = Table(title=f"{report.model} on {report.backend}")
    table.add_column("")
    for task in report.tasks:
        table.add_column(task.task, justify="right")
    if report.averaged:
        table.add_column(f"average of {len(report.averaged)}", justify="right")
    for k in sorted(set[int]().union(*(task.pass_at for task in report.tasks))):
        cells = [_cell(task.pass_at.get(k)) for task in report.tasks]
        table.add_row(
            f"Pass@{k}" if k > 1 else _avg_label(report.tasks),
            *cells,
            *([_cell(report.average.get(k))] if report.averaged else []),
        )
    for label, cells in _plain_rows(report.tasks):
        table.add_row(label, *cells)
    return table


def _avg_label(tasks: Sequence[TaskReport]) -> str:
    counts = {task.sampling.samples for task in tasks}
    return f"Avg@{counts.pop()}" if len(counts) == 1 else "Avg@k"


def _plain_rows(tasks: Sequence[TaskReport]) -> list[tuple[str, list[str]]]:
    return [
        (
            "problems x k",
            [f"{task.num_problems} x {task.sampling.samples}" for task in tasks],
        ),
        ("temperature, top_p", [_drawn(task.sampling) for task in tasks]),
        ("tokens a response", [f"{task.mean_tokens:,.0f}" for task in tasks]),
        (
            "truncated responses",
            [
                f"{task.num_truncated} (at {task.sampling.max_tokens:,})"
                for task in tasks
            ],
        ),
    ]


def _drawn(sampling: TaskSampling) -> str:
    if not sampling.temperature:
        return "greedy"
    return f"{sampling.temperature:g}, {sampling.top_p:g}"


def _cell(rate: PassRate | None) -> str:
    return "" if rate is None else f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"


__all__ = ["EvaluationReport", "TaskReport", "make_report", "report_table"]
