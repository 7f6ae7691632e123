"""What a program sees of a run in the place of a display: JSON lines, or nothing."""

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from types import TracebackType
from typing import Any, Literal, Self

from topd_ray.evaluation import Accuracy
from topd_ray.records.metrics import Metrics, finite

Output = Literal["display", "json", "quiet"]
"""What a run writes on stdout: a display for a person, a JSON line a step and the
summary as the last one, or nothing.
"""


class MachineOutput:
    """Writes JSON lines on stdout, or nothing; all other output goes to stderr.

    With `quiet` errors remain: the command line prints them on stderr.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._file = None if quiet else sys.stdout
        self._open = ExitStack()

    def say(self, text: str) -> None:
        """Leave a person's line out."""

    def remember(self, before: Accuracy) -> None:
        """Leave it out, as every accuracy."""

    def evaluated(self, accuracy: Accuracy, when: str) -> None:
        """Leave an accuracy out: those before and after are in the summary."""

    def step(self, metrics: Metrics, *, memory_gb: float) -> None:
        """Write the metrics of a step, as in metrics.jsonl."""
        del memory_gb
        self._write(finite(metrics))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write what summary.json holds."""
        self._write(summary)

    def _write(self, value: Mapping[str, Any]) -> None:
        if self._file is not None:
            # Flushed, because a program reads along through a pipe.
            print(json.dumps(value, allow_nan=False), file=self._file, flush=True)

    def __enter__(self) -> Self:
        # Libraries print notes, which would break the lines.
        self._open.enter_context(redirect_stdout(sys.stderr))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)


__all__ = ["MachineOutput", "Output"]
