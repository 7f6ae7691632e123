"""The blocks of one step: `list`, `plans`, `rollouts` and `timeline`.

The page opens with every `list`; it reads the other three when a reader looks there.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from topd_ray.page.arrow import numbers, texts
from topd_ray.page.blocks import BlockColumn, pack
from topd_ray.page.grades import Grades
from topd_ray.page.rollouts import (
    StepRollouts,
    read_rollouts,
    rollout_columns,
    summary_columns,
)
from topd_ray.page.tokens import TokenTexts
from topd_ray.page.windows import (
    StepWindows,
    list_columns,
    plan_columns,
    read_windows,
)
from topd_ray.records.open_run import Run

BlockKind = Literal["list", "plans", "rollouts", "timeline"]
BLOCK_KINDS: tuple[BlockKind, ...] = get_args(BlockKind)


class StepBlocks:
    """Makes the blocks of a run's steps; keeps the last step that it has read."""

    def __init__(self, run: Run, tokens: TokenTexts, grades: Grades) -> None:
        self._run = run
        self._tokens = tokens
        self._grades = grades
        self._windows: tuple[int, StepWindows | None] | None = None
        self._rollouts: tuple[int, StepRollouts | None] | None = None

    def go_on_with(self, run: Run) -> None:
        """Read from now on what a run that has gone on has written."""
        self._run = run
        self._windows = None
        self._rollouts = None

    def steps(self) -> list[int]:
        """Return the steps with windows or rollouts, ascending."""
        return sorted({*self._run.steps("windows"), *self._run.steps("rollouts")})

    def windows(self, step: int) -> StepWindows | None:
        """Return a step's windows."""
        if self._windows is None or self._windows[0] != step:
            table = self._run.read("windows", step)
            found = None if table is None else read_windows(table, step)
            self._windows = step, found
        return self._windows[1]

    def rollouts(self, step: int) -> StepRollouts | None:
        """Return a step's rollouts."""
        if self._rollouts is None or self._rollouts[0] != step:
            table = self._run.read("rollouts", step)
            found = (
                None
                if table is None
                else read_rollouts(table, self._tokens, self._grades)
            )
            self._rollouts = step, found
        return self._rollouts[1]

    def block(self, kind: BlockKind, step: int) -> bytes | None:
        """Return a block; None where the step has nothing of its kind."""
        columns = self._columns(kind, step)
        return pack(columns) if columns else None

    def _columns(self, kind: BlockKind, step: int) -> dict[str, BlockColumn] | None:
        if kind == "timeline":
            table = self._run.read("timeline", step)
            return None if table is None else _timeline_columns(table)
        if kind == "list":
            return dict(self._list_columns(step))
        if kind == "plans":
            windows = self.windows(step)
            return None if windows is None else plan_columns(windows, self._tokens)
        rollouts = self.rollouts(step)
        return None if rollouts is None else rollout_columns(rollouts, self._tokens)

    def _list_columns(self, step: int) -> Iterator[tuple[str, BlockColumn]]:
        windows = self.windows(step)
        if windows is not None:
            yield from list_columns(windows, self._tokens).items()
        rollouts = self.rollouts(step)
        if rollouts is not None:
            yield from summary_columns(rollouts, self._tokens).items()


def _timeline_columns(table: pa.Table) -> dict[str, BlockColumn]:
    stages = texts(table, "stage")
    calls = texts(table, "call")
    return {
        "actor": texts(table, "actor"),
        "stage": [stage or call for stage, call in zip(stages, calls, strict=True)],
        "call": calls,
        "began_s": numbers(table, "began_s", "float32", missing=np.nan),
        "ended_s": numbers(table, "ended_s", "float32", missing=np.nan),
        "num_tokens": numbers(table, "num_tokens", "float32"),
    }


__all__ = ["BLOCK_KINDS", "BlockKind", "StepBlocks"]
