"""What trackers show of a step beside its numbers: rollouts as a table, and figures.

Both are made of what the learner ranks have recorded. The text of a rollout is model
output: its control characters are escaped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from topd_ray.errors import printable
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.step_file import step_files

DecodeIds = Callable[[Sequence[int]], str]
"""Token ids -> text."""
SampleValue = str | int | float | None
Image = NDArray[np.uint8]
"""Height, width, and red, green, blue."""

COLUMNS = (
    "step",
    "rollout_id",
    "prompt_id",
    "prompt",
    "response",
    "finish_reason",
    "num_tokens",
    "mean_token_loss",
    "max_token_loss",
    "max_loss_token",
    "takeover_position",
    "takeover",
    "num_windows",
    "num_divergent",
    "max_d_ot",
)
_MOST_CHARACTERS = 2000
"""Longest text of a cell; trackers load a table whole."""


@dataclass(frozen=True, slots=True)
class StepSamples:
    """Rollouts and figures of one step."""

    step: int
    rows: list[tuple[SampleValue, ...]]
    """By `COLUMNS`."""
    images: dict[str, Image]
    """By name; none of what the step does not have."""


def step_samples(folder: RunFolder, step: int, decode: DecodeIds) -> StepSamples:
    """Read what was recorded of a step."""
    rollouts = _rows(folder.rollouts, step)
    windows = _rows(folder.windows, step, _WINDOW_COLUMNS)
    of_rollout: dict[str, list[dict[str, Any]]] = {}
    for window in windows:
        of_rollout.setdefault(window["rollout_id"], []).append(window)
    rows = [
        _row(step, rollout, of_rollout.get(rollout["rollout_id"], ()), decode)
        for rollout in rollouts
    ]
    return StepSamples(step, rows, _images(step, rollouts, windows))


def _images(
    step: int, rollouts: Sequence[dict[str, Any]], windows: Sequence[dict[str, Any]]
) -> dict[str, Image]:
    # Matplotlib takes half a second to load, which only a run spends.
    from topd_ray.records.sample_figures import distance_image, loss_image

    images = {}
    if rollouts:
        losses_N = np.concatenate([row["token_loss"] for row in rollouts])
        images["token_loss"] = loss_image(losses_N, step=step)
    if windows:
        distances_W = np.array([window["d_ot"] for window in windows])
        threshold = windows[0]["threshold"]
        images["d_ot"] = distance_image(distances_W, threshold=threshold, step=step)
    return images


_WINDOW_COLUMNS = ("rollout_id", "d_ot", "threshold", "divergent")


def _rows(
    folder: Path, step: int, columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    tables = [
        pq.read_table(file, columns=None if columns is None else list(columns))
        for file in step_files(folder, step)
    ]
    return list(pa.concat_tables(tables).to_pylist()) if tables else []


def _row(
    step: int,
    rollout: dict[str, Any],
    windows: Sequence[dict[str, Any]],
    decode: DecodeIds,
) -> tuple[SampleValue, ...]:
    losses = rollout["token_loss"]
    worst = int(np.argmax(losses))
    takeover_ids = rollout["takeover_ids"]
    # nan where a cost was not finite
    distances = [window["d_ot"] for window in windows if math.isfinite(window["d_ot"])]
    values: dict[str, SampleValue] = {
        "step": step,
        "rollout_id": rollout["rollout_id"],
        "prompt_id": printable(rollout["prompt_id"]),
        "prompt": _text(rollout["prompt_ids"], decode),
        "response": _text(rollout["response_ids"], decode),
        "finish_reason": rollout["finish_reason"],
        "num_tokens": len(losses),
        "mean_token_loss": float(np.mean(losses)),
        "max_token_loss": float(losses[worst]),
        "max_loss_token": _text(rollout["response_ids"][worst : worst + 1], decode),
        "takeover_position": rollout["takeover_position"],
        "takeover": None if takeover_ids is None else _text(takeover_ids, decode),
        "num_windows": len(windows),
        "num_divergent": sum(window["divergent"] for window in windows),
        "max_d_ot": max(distances, default=None),
    }
    return tuple(values[name] for name in COLUMNS)


def _text(ids: Sequence[int], decode: DecodeIds) -> str:
    """Return the text of token ids, of a long one its beginning and its end."""
    text = printable(decode(ids))
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]} […] {text[-half:]}"


__all__ = [
    "COLUMNS",
    "DecodeIds",
    "Image",
    "SampleValue",
    "StepSamples",
    "step_samples",
]
