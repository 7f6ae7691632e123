"""What a run tells while it goes on: metrics, events, display, trace, memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from topd_ray.config import Config
from topd_ray.contexts.chat import load_tokenizer
from topd_ray.evaluation import Accuracy
from topd_ray.models.roles import resolve_student
from topd_ray.prompts import DroppedPrompt
from topd_ray.records.bad_step import BadStep
from topd_ray.records.display import Display
from topd_ray.records.machine_output import MachineOutput, Output
from topd_ray.records.metrics import Metrics, MetricsLog
from topd_ray.records.peak_memory import PeakMemory
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.samples import step_samples
from topd_ray.records.step_file import forget_steps_after, write_step_file
from topd_ray.records.timeline import TraceWriter, Work
from topd_ray.records.timeline_file import timeline_table
from topd_ray.records.trackers import TrackerError


class RunLog:
    """The open records of one process of a run; a context manager, so none is lost."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        *,
        last_step: int,
        total_steps: int,
        started_s: float,
        output: Output = "display",
    ) -> None:
        """Open the records; steps after `last_step` will be logged again.

        `started_s` is a reading of the monotonic clock; `output` is what stdout gets.
        """
        self._config = config
        self._folder = folder
        self._total_steps = total_steps
        self._tokenizer: Any = None
        self._forget_after(last_step)
        self._open = ExitStack()
        self._memory = PeakMemory()
        self._display = (
            Display(
                f"{config.run.method} {config.run.name}",
                total_steps=total_steps,
                started_s=started_s,
            )
            if output == "display"
            else MachineOutput(quiet=output == "quiet")
        )
        self._metrics = MetricsLog(
            config, folder, last_step=last_step, on_lost=self._say_lost
        )
        self._trace = TraceWriter(folder.trace) if config.run.trace else None

    def __enter__(self) -> Self:
        # The display last but one, so that what is closed before it can still speak.
        records = (self._memory, self._display, self._metrics, self._trace)
        for record in records:
            if record is not None:
                self._open.enter_context(record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    @property
    def peak_memory_gb(self) -> float:
        """Peak resident memory of the run's processes on this machine, 10^9 bytes."""
        return self._memory.peak_bytes / 1e9

    @property
    def role_peak_memory_gb(self) -> dict[str, float]:
        """The same of the processes of each role."""
        peaks = self._memory.role_peak_bytes
        return {role: peak / 1e9 for role, peak in sorted(peaks.items())}

    def say(self, text: str) -> None:
        """Show a person one line."""
        self._display.say(text)

    def event(self, kind: str, **details: Any) -> None:
        """Write a line of events.jsonl."""
        self._metrics.event(kind, **details)

    def begins(
        self, num_prompts: int, dropped: Sequence[DroppedPrompt], steps: int
    ) -> None:
        """Tell what the run will work on; each dropped prompt becomes an event."""
        for drop in dropped:
            self.event("prompt_dropped", **asdict(drop))
        self.say(
            f"{num_prompts:,} prompts ({len(dropped)} dropped), {steps} steps; run"
            f" folder {self._folder.path}"
        )

    def step(self, metrics: Metrics, works: Sequence[Work], *, began_s: float) -> None:
        """Record a finished step, which began at `began_s` of the works' clock."""
        number = int(metrics["step"])
        self._metrics.log(metrics)
        timeline = timeline_table(works, began_s=began_s)
        write_step_file(timeline, self._folder.timeline, step=number)
        if self._is_shown(number):
            self._metrics.show(step_samples(self._folder, number, self._decode))
        self._display.step(metrics, memory_gb=self._memory.last_bytes / 1e9)
        if self._trace:
            self._trace.add(works)

    def _is_shown(self, step: int) -> bool:
        """Return whether trackers get rollouts and figures: they take half a second."""
        due = step == 1 or step % self._config.run.checkpoint_every == 0
        return self._metrics.has_trackers and (due or step == self._total_steps)

    def _decode(self, ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(resolve_student(self._config))
        text: str = self._tokenizer.decode(ids)
        return text

    def _say_lost(self, error: TrackerError) -> None:
        self.say(f"{error}; nothing more is logged there")

    def remember(self, before: Accuracy) -> None:
        """Take the accuracy before training from a checkpoint, for the progress."""
        self._display.remember(before)

    def evaluated(self, accuracy: Accuracy, when: str, step: int | None = None) -> None:
        """Show an accuracy; during training (`step`) it is an event too."""
        self._display.evaluated(accuracy, when)
        if step is not None:
            self.event("evaluated", step=step, **asdict(accuracy))

    def step_skipped(self, bad: BadStep, prompt_ids: Sequence[str], dump: Path) -> None:
        """Tell why a step's update was skipped, and where the step is kept."""
        details = asdict(bad) | {"prompt_ids": list(prompt_ids), "dump": dump.name}
        self.event("step_skipped", **details)
        self.say(f"step {bad.step} skipped: {bad.complaints[0]}; `topd replay {dump}`")

    def go_back(self, step: int, reason: str, last_calls: dict[str, list[str]]) -> None:
        """Forget the steps after `step`, which will be done again, and tell why."""
        self._metrics.go_back(step)
        self._forget_after(step)
        self.event("went_back", step=step, error=reason, last_calls=last_calls)
        self.say(f"{reason}; going back to step {step}")

    def _forget_after(self, last_step: int) -> None:
        folder = self._folder
        for steps in (folder.windows, folder.rollouts, folder.timeline):
            forget_steps_after(steps, last_step)

    def summary(self, summary: dict[str, Any]) -> None:
        """Show the final table."""
        self._display.summary(summary)
