"""What a person sees while a run goes on, and the table at its end."""

import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from topd_ray.errors import printable
from topd_ray.evaluation import Accuracy
from topd_ray.records.metrics import Metrics

_STAGES = {  # stage: (what it handles, count in the metrics)
    "rollout": ("tokens sampled", "rollout/num_tokens"),
    "teacher": ("tokens scored", "teacher/num_tokens"),
    "probe": ("tokens continued", "probe/num_tokens"),
    "takeover": ("tokens taken over", "takeover/num_tokens"),
    "learner": ("tokens trained", "learner/num_tokens"),
}
_RECENT = 20
"""Steps whose seconds the remaining time is estimated from."""


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
            console=self._console,
        )
        # A name of a run may hold no bracket, so this is no markup.
        self._task = self._bar.add_task(title, total=total_steps)
        # No refresh from a thread: what is shown changes once a step.
        self._live = Live(self._bar, console=self._console, auto_refresh=False)
        self._started_s = started_s
        self._total_steps = total_steps
        self._step_s = deque[float](maxlen=_RECENT)
        self._last_step_at_s: float | None = None
        self._accuracies: list[float] = []

    def say(self, text: str) -> None:
        """Print one line that stays."""
        seconds = time.monotonic() - self._started_s
        self._console.print(
            # Paths and ids may hold brackets, which rich would read as markup.
            f"{seconds:6.1f} s  {printable(text)}",
            soft_wrap=True,
            markup=False,
        )

    def remember(self, before: Accuracy) -> None:
        """Take an earlier session's accuracy before training for the progress line."""
        if before.num_problems and not self._accuracies:
            self._accuracies.append(before.share)

    def evaluated(self, accuracy: Accuracy, when: str) -> None:
        """Show an accuracy, and keep it for the progress line."""
        if accuracy.num_problems:
            self._accuracies.append(accuracy.share)
            low, high = accuracy.interval
            self.say(
                f"accuracy {when}: {accuracy.share:.1%} [{low:.1%}, {high:.1%}]"
                f" of {accuracy.num_problems}"
            )

    def step(self, metrics: Metrics, *, memory_gb: float) -> None:
        """Show a finished step; `memory_gb` is resident now, in 10^9 bytes."""
        self._count_step(metrics)
        progress = self._progress_line(metrics, memory_gb)
        self._bar.update(self._task, completed=metrics["step"])
        if self._console.is_terminal:
            self._live.update(
                Group(self._bar, progress, _stage_table(metrics), _state_line(metrics))
            )
            self._live.refresh()
        else:
            number = f"step {metrics['step']}/{self._total_steps}"
            self.say(f"{number}  {_state_line(metrics)}  {progress}")

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Print the final table."""
        self._live.stop()
        self._console.print(_summary_table(summary))

    def _count_step(self, metrics: Metrics) -> None:
        now_s = time.monotonic()
        # From step to step, so that checkpoints and evaluations between them count. A
        # resumed run's first step has none before it.
        if self._last_step_at_s is None:
            self._step_s.append(metrics["step/wall_s"])
        else:
            self._step_s.append(now_s - self._last_step_at_s)
        self._last_step_at_s = now_s

    def _progress_line(self, metrics: Metrics, memory_gb: float) -> str:
        left = self._total_steps - int(metrics["step"])
        eta_s = left * sum(self._step_s) / len(self._step_s)
        rate = metrics["learner/num_tokens"] / max(metrics["step/wall_s"], 1e-9)
        parts = [f"{rate:,.0f} tokens/s", f"memory {memory_gb:.1f} GB"]
        if self._accuracies:
            seen = [self._accuracies[0], *self._accuracies[1:][-1:]]
            parts.insert(0, "accuracy " + " -> ".join(f"{share:.1%}" for share in seen))
        if left:
            parts.append(f"ETA {_duration(eta_s)}")
        return "  ".join(parts)

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


def _duration(seconds: float) -> str:
    """Return e.g. 45 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


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
