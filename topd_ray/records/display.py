"""What a person sees while a run goes on, and the table at its end."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from topd_ray.errors import printable
from topd_ray.records.metrics import Metrics

_STAGES = {  # stage: (what it handles, count in the metrics)
    "rollout": ("tokens sampled", "rollout/num_tokens"),
    "teacher": ("tokens scored", "teacher/num_tokens"),
    "probe": ("tokens continued", "probe/num_tokens"),
    "takeover": ("tokens taken over", "takeover/num_tokens"),
    "learner": ("tokens trained", "learner/num_tokens"),
}


class Display:
    """Shows a run: a live table on a terminal, elsewhere a line a step."""

    def __init__(
        self,
        title: str,
        *,
        total_steps: int,
        started_s: float,
        console: Console | None = None,
    ) -> None:
        """Count seconds from `started_s`, a reading of the monotonic clock."""
        self._console = console or Console()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(title, total=total_steps)
        # No refresh from a thread: what is shown changes once a step.
        self._live = Live(self._bar, console=self._console, auto_refresh=False)
        self._started_s = started_s

    def say(self, text: str) -> None:
        """Print one line that stays."""
        seconds = time.monotonic() - self._started_s
        self._console.print(
            # Paths and ids may hold brackets, which rich would read as markup.
            f"{seconds:6.1f} s  {printable(text)}",
            soft_wrap=True,
            markup=False,
        )

    def step(self, metrics: Metrics) -> None:
        """Show a finished step."""
        self._bar.update(self._task, completed=metrics["step"])
        if self._console.is_terminal:
            self._live.update(
                Group(self._bar, _stage_table(metrics), _state_line(metrics))
            )
            self._live.refresh()
        else:
            self.say(f"step {metrics['step']}  {_state_line(metrics)}")

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Print the final table."""
        self._live.stop()
        self._console.print(_summary_table(summary))

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()


def _stage_table(metrics: Metrics) -> Table:
    table = Table(
        "stage", "a step", "a second of its work", "busy", box=None, pad_edge=False
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, (unit, count) in _STAGES.items():
        busy_s = metrics[f"{stage}/busy_s"]
        number = metrics[count]
        if number:
            table.add_row(
                stage,
                f"{number:,} {unit}",
                f"{number / max(busy_s, 1e-9):,.0f}",
                f"{busy_s / max(metrics['step/wall_s'], 1e-9):.0%}",
            )
    return table


def _state_line(metrics: Metrics) -> str:
    line = f"loss {metrics['loss']:.4f} (opd {metrics['loss/opd']:.4f})"
    if metrics["candidates/num"]:
        line += (
            f"  divergent {metrics['windows/divergent_frac']:.0%} of"
            f" {metrics['candidates/num']}  D_OT {metrics['probe/mean_d_ot']:.3f}"
        )
    if metrics["takeover/num"]:
        line += (
            f"  taken over {metrics['takeover/frac']:.0%}"
            f" at {metrics['takeover/own_frac']:.0%}"
        )
    return (
        f"{line}  staleness {metrics['rollout/staleness']}  "
        f"grad {metrics['learner/grad_norm']:.2f}  {metrics['step/wall_s']:.1f} s"
    )


def _summary_table(summary: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"{summary['name']}: {summary['method']}, seed {summary['seed']}"
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    if summary["num_eval"]:
        for when in ("before", "after"):
            low, high = summary[f"accuracy_{when}_interval"]
            table.add_row(
                f"accuracy {when} ({summary['num_eval']} held-out problems)",
                f"{summary[f'accuracy_{when}']:.1%}  [{low:.1%}, {high:.1%}]",
            )
    table.add_row("optimizer steps", f"{summary['steps']}")
    table.add_row("student tokens", f"{summary['student_tokens']:,}")
    if summary["teacher_tokens"]:
        table.add_row("decoded by the teacher", f"{summary['teacher_tokens']:,}")
    if summary["num_taken_over"]:
        share = summary["num_taken_over"] / summary["num_rollouts"]
        table.add_row("taken over", f"{summary['num_taken_over']:,} ({share:.0%})")
    if summary["num_candidates"]:
        share = summary["num_divergent"] / summary["num_candidates"]
        table.add_row("candidates probed", f"{summary['num_candidates']:,}")
        table.add_row("real divergences", f"{summary['num_divergent']:,} ({share:.0%})")
    for stage, seconds in summary["stage_s"].items():
        table.add_row(f"seconds, {stage}", f"{seconds:.1f}")
    table.add_row("seconds, wall clock", f"{summary['wall_s']:.1f}")
    table.add_row("peak memory", f"{summary['peak_rss_gb']:.1f} GB")
    return table
