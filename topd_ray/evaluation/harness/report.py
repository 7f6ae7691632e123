"""Answers -> Avg@k, Pass@k and what they cost: numbers, JSON and a table."""

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
from topd_ray.evaluation.harness.task_names import EXAMS, TaskSampling
from topd_ray.seeds import derive_seed

if TYPE_CHECKING:
    from rich.table import Table

    from topd_ray.evaluation.harness.run import Answered


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """One task's figures."""

    task: str
    source: str
    sampling: TaskSampling
    num_problems: int
    pass_at: dict[int, PassRate]
    """By k; 1 is Avg@k, the mean over all responses."""
    num_truncated: int
    mean_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """All tasks of one evaluation and, of several contests, their average."""

    model: str
    backend: str
    tasks: tuple[TaskReport, ...]
    averaged: tuple[str, ...]
    """Tasks in the average, each of equal weight; none unless there are two."""
    average: dict[int, PassRate]

    def to_json(self) -> dict[str, Any]:
        """Plain values; k is a string, as JSON wants its keys."""
        return {
            "harness": f"lm_eval {version('lm_eval')}",
            "model": self.model,
            "backend": self.backend,
            "tasks": {one.task: _task_json(one) for one in self.tasks},
            "average": (
                {"tasks": list(self.averaged), **_pass_json(self.average)}
                if self.averaged
                else None
            ),
        }


def make_report(
    answered: Sequence["Answered"], *, model: str, backend: str, seed: int
) -> EvaluationReport:
    """Estimates of every task, with intervals that the seed fixes."""
    exams = [one for one in answered if one.task in EXAMS]
    averaged = exams if len(exams) > 1 else []
    return EvaluationReport(
        model=model,
        backend=backend,
        tasks=tuple(_task_report(one, seed) for one in answered),
        averaged=tuple(one.task for one in averaged),
        average=_estimates(averaged, seed) if averaged else {},
    )


def _task_report(one: "Answered", seed: int) -> TaskReport:
    return TaskReport(
        task=one.task,
        source=one.source,
        sampling=one.sampling,
        num_problems=len(one.num_correct_P),
        pass_at=_estimates([one], seed),
        num_truncated=one.num_truncated,
        mean_tokens=one.num_tokens / len(one.samples),
    )


def _estimates(groups: Sequence["Answered"], seed: int) -> dict[int, PassRate]:
    """Pass@k of the tasks together, for every power of two that each was sampled often
    enough.
    """
    names = "+".join(one.task for one in groups)
    return {
        k: estimate_pass_rate(
            [
                pass_at_k(
                    np.asarray(one.num_correct_P),
                    num_samples=_num_samples(one.sampling),
                    k=k,
                )
                for one in groups
            ],
            seed=derive_seed(seed, names, "bootstrap"),
        )
        for k in powers_of_two(min(_num_samples(one.sampling) for one in groups))
    }


def _num_samples(sampling: TaskSampling) -> int:
    assert sampling.samples is not None, "what was asked is known afterwards"
    return sampling.samples


def _task_json(one: TaskReport) -> dict[str, Any]:
    return {
        "source": one.source,
        "num_problems": one.num_problems,
        **asdict(one.sampling),
        **_pass_json(one.pass_at),
        "num_truncated": one.num_truncated,
        "mean_tokens": one.mean_tokens,
    }


def _pass_json(estimates: dict[int, PassRate]) -> dict[str, Any]:
    """Avg@k under a name of its own: it is the figure that papers quote."""
    return {
        "avg": asdict(estimates[1]),
        "pass_at": {str(k): asdict(one) for k, one in estimates.items()},
    }


def report_table(report: EvaluationReport) -> "Table":
    """A column a task, a row a figure."""
    from rich.table import Table

    table = Table(title=f"{report.model} on {report.backend}")
    table.add_column("")
    for one in report.tasks:
        table.add_column(one.task, justify="right")
    if report.averaged:
        table.add_column(f"average of {len(report.averaged)}", justify="right")
    for k in sorted({k for one in report.tasks for k in one.pass_at}):
        cells = [_cell(one.pass_at.get(k)) for one in report.tasks]
        table.add_row(
            f"Pass@{k}" if k > 1 else _avg_label(report.tasks),
            *cells,
            *([_cell(report.average.get(k))] if report.averaged else []),
        )
    for label, cells in _plain_rows(report.tasks):
        table.add_row(label, *cells)
    return table


def _avg_label(tasks: Sequence[TaskReport]) -> str:
    counts = {one.sampling.samples for one in tasks}
    return f"Avg@{counts.pop()}" if len(counts) == 1 else "Avg@k"


def _plain_rows(tasks: Sequence[TaskReport]) -> list[tuple[str, list[str]]]:
    return [
        (
            "problems x k",
            [f"{one.num_problems} x {one.sampling.samples}" for one in tasks],
        ),
        ("temperature, top_p", [_drawn(one.sampling) for one in tasks]),
        ("tokens a response", [f"{one.mean_tokens:,.0f}" for one in tasks]),
        (
            "truncated responses",
            [f"{one.num_truncated} (at {one.sampling.max_tokens:,})" for one in tasks],
        ),
    ]


def _drawn(sampling: TaskSampling) -> str:
    if not sampling.temperature:
        return "greedy"
    return f"{sampling.temperature:g}, {sampling.top_p:g}"


def _cell(one: PassRate | None) -> str:
    return "" if one is None else f"{one.value:.1%} [{one.low:.1%}, {one.high:.1%}]"


__all__ = ["EvaluationReport", "TaskReport", "make_report", "report_table"]
