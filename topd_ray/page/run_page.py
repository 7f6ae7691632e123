"""All that the page shows of a run: its overview, and what its blocks are made from."""

from collections.abc import Iterator
from typing import Any

from topd_ray.page.distributions import RunWindows
from topd_ray.page.grades import read_grades
from topd_ray.page.overview import overview
from topd_ray.page.step_blocks import StepBlocks
from topd_ray.page.takeovers import RunTakeovers
from topd_ray.page.times import time_shares
from topd_ray.page.tokens import KIND_NAMES, token_texts
from topd_ray.page.windows import GROUP_NAMES, VERDICT_NAMES
from topd_ray.records.open_run import Run, open_run


class RunPage:
    """A run's page; asked again while the run goes on, it reads only new steps."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._tokens, no_tokenizer = token_texts(run)
        self._grades, no_grades = read_grades(run)
        self._lasting = [text for text in (no_tokenizer, no_grades) if text]
        self._windows = RunWindows(self._tokens)
        self._takeovers = RunTakeovers(self._tokens)
        self.blocks = StepBlocks(run, self._tokens, self._grades)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._run.name

    def again(self) -> None:
        """Read the run's files anew: it has gone on."""
        self._run = open_run(self._run.folder.path)
        self.blocks.go_on_with(self._run)

    def values(self) -> dict[str, Any]:
        """Return the overview with the distributions, as plain values for JSON."""
        run = self._run
        self._read_windows()
        if run.config is None or run.config.uses_takeovers:
            self._read_takeovers()
        values = overview(run, self._windows.thresholds)
        config = run.config
        return {
            **values,
            "kinds": KIND_NAMES,
            "groups": GROUP_NAMES,
            "verdicts": VERDICT_NAMES,
            "loss_name": config.candidates.loss if config else "",
            "window": config.probe.window if config else None,
            "distributions": self._windows.figures(),
            "takeovers": self._takeovers.figures(),
            "times": time_shares(run.metric_lines),
            "block_steps": self.blocks.steps(),
            "timeline_steps": run.steps("timeline"),
            "missing": [*self._missing(), *self._lasting, *run.problems],
            "comparison": None,
        }

    def _read_windows(self) -> None:
        """Take the windows of the steps that are new."""
        steps = self._run.steps("windows")
        self._windows.keep(steps)
        for step in steps:
            if not self._windows.has(step):
                windows = self.blocks.windows(step)
                if windows is not None:
                    self._windows.add(windows)

    def _read_takeovers(self) -> None:
        """Take the rollouts of the steps that are new."""
        steps = self._run.steps("rollouts")
        self._takeovers.keep(steps)
        for step in steps:
            if not self._takeovers.has(step):
                rollouts = self.blocks.rollouts(step)
                if rollouts is not None:
                    self._takeovers.add(step, rollouts)

    def ungraded(self) -> str | None:
        """Return what to say of responses that there was no time to grade."""
        number = self._grades.num_ungraded
        if not number:
            return None
        return (
            f"{number:,} responses are not graded: comparing their answers took"
            " too long, or math-verify did not start."
        )

    def _missing(self) -> Iterator[str]:
        """Yield a sentence for each part that is not there."""
        run = self._run
        if run.state == "running":
            yield "The run is going on: this is what it has recorded so far."
        elif run.state == "stopped":
            yield (
                "The run is not finished, and no process of this machine works on it:"
                f" `topd resume {run.folder.path}` goes on with it."
            )
        if not run.metric_lines:
            yield "No step is finished yet: there are no curves."
        if not run.steps("windows"):
            if run.config is None or run.config.uses_probes:
                yield (
                    "No windows are recorded: nothing was probed, or nothing was kept."
                )
        elif not self._has_plans():
            yield (
                "The windows hold no transport plans: an older version wrote them, or"
                " records.max_windows_per_step is 0."
            )
        if not run.steps("rollouts"):
            yield (
                "No rollouts are recorded: an older version wrote the run, or"
                " records.max_rollouts_per_step is 0."
            )
        if not run.steps("timeline"):
            yield "No calls of the actors are recorded: an older version wrote the run."

    def _has_plans(self) -> bool:
        table = self._run.read("windows", self._run.steps("windows")[0])
        return table is not None and "plan_mass" in table.column_names


__all__ = ["RunPage"]
