"""Metrics, rollouts and figures of a run as event files of TensorBoard."""

import string
from collections.abc import Mapping

from topd_ray.records.run_folder import RunFolder
from topd_ray.records.samples import COLUMNS, SampleValue, StepSamples

_MARKUP = {
    **{ord(character): f"&#{ord(character)};" for character in string.punctuation},
    ord("\n"): "&#9166;",  # a row of a table is one line: a sign for the line's end
    ord("\t"): " ",
}
"""TensorBoard shows text as Markdown, of which HTML is a part."""


class TensorboardLog:
    """The event files of a run folder, more of them with every session."""

    name = "tensorboard"

    def __init__(self, folder: RunFolder, *, last_step: int) -> None:
        """Open a file. Steps after `last_step` of earlier files are hidden."""
        self._folder = folder
        self._open(last_step)

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log the metrics of one step; `step` is among them."""
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, metrics["step"])

    def show(self, samples: StepSamples) -> None:
        """Show rollouts as a table of the tab Text, figures in the tab Images."""
        if samples.rows:
            self._writer.add_text("rollouts", _markdown(samples), samples.step)
        for name, image in samples.images.items():
            self._writer.add_image(name, image, samples.step, dataformats="HWC")

    def go_back(self, last_step: int) -> None:
        """Hide the steps after `last_step`; they will be logged again."""
        self._writer.close()
        self._open(last_step)

    def close(self, *, failed: bool) -> None:
        """Write what is left; a failed run has the same files."""
        del failed
        self._writer.close()

    def _open(self, last_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Event files cannot be cut, so `purge_step` tells the reader what to hide.
        self._writer = SummaryWriter(
            str(self._folder.tensorboard), purge_step=last_step + 1
        )


def _markdown(samples: StepSamples) -> str:
    """Return the table in Markdown; the step is its place on the slider."""
    lines = [COLUMNS[1:], ["---"] * (len(COLUMNS) - 1)]
    table = [" | ".join(line) for line in lines]
    table += [" | ".join(map(_cell, row[1:])) for row in samples.rows]
    return "\n".join(f"| {line} |" for line in table)


def _cell(value: SampleValue) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value).translate(_MARKUP)


__all__ = ["TensorboardLog"]
