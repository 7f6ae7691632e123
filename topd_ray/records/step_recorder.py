"""What one learner rank records of a step: its windows and a draw of its rollouts.

Everything is copied, and bounded: a step may have thousands of windows, whose plans and
hidden states are too large to keep.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa

from topd_ray.config import RecordsConfig
from topd_ray.messages import (
    HIGH,
    Floats,
    Ints,
    ProbeSet,
    ScoredRollout,
    Takeover,
    TeacherSignal,
)
from topd_ray.records.rollout_file import rollout_row, rollout_table
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.step_file import write_step_file
from topd_ray.records.window_file import (
    NUM_LIKELIEST,
    WindowDetails,
    likeliest_of_student,
    window_rows,
    window_table,
)
from topd_ray.seeds import derive_seed
from topd_ray.windows.signals import join_signals, row_at

Likeliest = Callable[[TeacherSignal, int], tuple[Ints, Floats] | None]
"""(signal at n positions, m) -> the teacher's m likeliest ids and log-probabilities,
each (n, m), best first; None where the signal does not say.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeptWindow:
    """A window whose details may be recorded."""

    row: int
    """Its row in the step's table."""
    plan_KK: Floats
    student_top: tuple[Ints, Floats] | None
    signal: TeacherSignal
    """The teacher's signal at the window's position: one row."""


class _Draw:
    """A draw of rollouts in which each has the same chance, whenever it comes.

    Short rollouts come first, so the first ones of a step would be unlike the others.
    Lots are drawn by name: two runs of the same prompts record the same rollouts.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: dict[str, dict[str, Any]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def takes(self, name: str) -> bool:
        """Return whether a rollout would be among those that are drawn so far."""
        if len(self._rows) < self._size:
            return True
        return self._size > 0 and _lot(name) < _lot(self._last)

    def put(self, name: str, row: dict[str, Any]) -> str | None:
        """Take a rollout's row; return the rollout that is out now, if any."""
        self._rows[name] = row
        if len(self._rows) <= self._size:
            return None
        lost = self._last
        del self._rows[lost]
        return lost

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows by name."""
        return [self._rows[name] for name in sorted(self._rows)]

    @property
    def _last(self) -> str:
        return max(self._rows, key=_lot)


def _lot(name: str) -> tuple[int, str]:
    return derive_seed(0, name, "recorded"), name


class StepRecorder:
    """Collects what a learner rank records during a step, and writes it at its end."""

    def __init__(
        self,
        config: RecordsConfig,
        folder: RunFolder,
        *,
        index: int = 0,
        num_recorders: int = 1,
        rank: int = 0,
    ) -> None:
        """Take this rank's share of what a step may record.

        `index` of `num_recorders` ranks that record; ranks that share sequences have
        the same rollouts, so one of them does.
        """
        self._num_windows = _share(config.max_windows_per_step, index, num_recorders)
        self._num_rollouts = _share(config.max_rollouts_per_step, index, num_recorders)
        self._records_windows = config.max_windows_per_step > 0
        self._folder = folder
        self._rank = rank
        self.clear()

    def clear(self) -> None:
        """Drop what was collected; of a step that is abandoned, nothing is left."""
        self._batches: list[pa.RecordBatch] = []
        self._num_rows = 0
        self._kept: dict[str, list[_KeptWindow]] = {}
        self._num_kept = 0
        self._drawn = _Draw(self._num_rollouts)

    def add(
        self,
        scored: Sequence[ScoredRollout],
        probe_sets: Sequence[ProbeSet],
        takeovers: Mapping[str, Takeover],
        threshold: float,
    ) -> None:
        """Collect a share; `scored` is from before the takeovers."""
        probed = {probe_set.rollout_id: probe_set for probe_set in probe_sets}
        for rollout in scored:
            name = rollout.rollout.rollout_id
            if self._drawn.takes(name):
                lost = self._drawn.put(name, rollout_row(rollout, takeovers.get(name)))
                if lost is not None:
                    self._forget_windows(lost)
            probe_set = probed.get(name)
            has_windows = probe_set is not None and len(probe_set.positions_W) > 0
            if probe_set is not None and has_windows and self._records_windows:
                self._add_windows(rollout, probe_set, threshold)

    def _add_windows(
        self, scored: ScoredRollout, probe_set: ProbeSet, threshold: float
    ) -> None:
        name = scored.rollout.rollout_id
        if name in self._drawn or self._num_kept < self._num_windows:
            kept = [
                _kept_window(scored, probe_set, w, row=self._num_rows + w)
                for w in _by_interest(probe_set)[: self._num_windows]
            ]
            self._kept[name] = kept
            self._num_kept += len(kept)
        self._batches.append(window_rows(probe_set, threshold))
        self._num_rows += len(probe_set.positions_W)

    def _forget_windows(self, name: str) -> None:
        """Drop the details of a rollout that is not recorded after all, if there are
        enough without it.
        """
        num_spare = len(self._kept.get(name, []))
        if self._num_kept - num_spare >= self._num_windows:
            self._num_kept -= num_spare
            self._kept.pop(name, None)

    def write(self, step: int, likeliest: Likeliest) -> None:
        """Write the step's files, if there is anything to write, and start anew."""
        if self._batches:
            table = window_table(self._batches, self._details(likeliest))
            write_step_file(table, self._folder.windows, step=step, rank=self._rank)
        rows = self._drawn.rows()
        if rows:
            table = rollout_table(rows)
            write_step_file(table, self._folder.rollouts, step=step, rank=self._rank)
        self.clear()

    def _details(self, likeliest: Likeliest) -> dict[int, WindowDetails]:
        """Return the details of the chosen windows, by row."""
        # The windows of recorded rollouts first, so that a reader finds both.
        names = sorted(self._kept, key=_lot)
        recorded = [self._kept[name] for name in names if name in self._drawn]
        others = [self._kept[name] for name in names if name not in self._drawn]
        chosen = [*_in_turn(recorded), *_in_turn(others)][: self._num_windows]
        if not chosen:
            return {}
        top = likeliest(
            join_signals([window.signal for window in chosen]), NUM_LIKELIEST
        )
        return {
            window.row: WindowDetails(
                plan_KK=window.plan_KK,
                student_top=window.student_top,
                teacher_top=None if top is None else (top[0][w], top[1][w]),
            )
            for w, window in enumerate(chosen)
        }


def _share(total: int, index: int, num_recorders: int) -> int:
    """Return this recorder's part of a number that all of them share."""
    return total // num_recorders + (index < total % num_recorders)


def _by_interest(probe_set: ProbeSet) -> Ints:
    """Return the windows with a plan: candidates by falling loss, then the controls."""
    solved_W = np.flatnonzero(probe_set.converged_W)
    is_control_W = probe_set.groups_W[solved_W] != HIGH
    order: Ints = solved_W[np.lexsort((-probe_set.losses_W[solved_W], is_control_W))]
    return order


def _kept_window(
    scored: ScoredRollout, probe_set: ProbeSet, w: int, *, row: int
) -> _KeptWindow:
    position = int(probe_set.positions_W[w])
    return _KeptWindow(
        row=row,
        plan_KK=probe_set.plan_WKK[w].copy(),
        student_top=likeliest_of_student(scored.rollout, position),
        signal=row_at(scored.signal, position),
    )


def _in_turn(kept: Sequence[Sequence[_KeptWindow]]) -> list[_KeptWindow]:
    """Return the first window of every rollout, then the second of every one, …."""
    rounds = zip_longest(*kept)
    return [window for windows in rounds for window in windows if window is not None]


__all__ = ["Likeliest", "StepRecorder"]
