"""Figures of one step for trackers, as images."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

_BLUE = "#0072B2"
_VERMILION = "#D55E00"
_BINS = 40


def distance_image(
    distances_W: NDArray[np.float64], *, threshold: float, step: int
) -> NDArray[np.uint8]:
    """Draw how D_OT of a step's windows is spread, with the threshold.

    Args:
        distances_W: D_OT of every window; nan is left out.
        threshold: D_OT above which a candidate is a real divergence; left out where it
            is not finite.
        step: Number of the step.

    Returns:
        An image of height, width and 3 colours.
    """
    canvas, axes = _canvas()
    axes.hist(distances_W[np.isfinite(distances_W)], _BINS, color=_BLUE)
    if np.isfinite(threshold):
        label = f"threshold {threshold:.3f}"
        axes.axvline(threshold, color=_VERMILION, linestyle="--", label=label)
        axes.legend(frameon=False)
    axes.set(title=f"Windows of step {step}", xlabel="D_OT", ylabel="windows")
    return _drawn(canvas)


def loss_image(losses_N: NDArray[np.float64], *, step: int) -> NDArray[np.uint8]:
    """Draw how the token loss of a step's recorded rollouts is spread.

    Args:
        losses_N: Token loss (D1) of every token, nats; what is not finite is left out.
        step: Number of the step.

    Returns:
        An image of height, width and 3 colours.
    """
    canvas, axes = _canvas()
    # Most tokens have next to no loss: on a linear axis the others would not be seen.
    axes.hist(losses_N[np.isfinite(losses_N)], _BINS, color=_BLUE, log=True)
    axes.set(title=f"Tokens of step {step}", xlabel="token loss, nats", ylabel="tokens")
    axes.set_ylim(bottom=0.7)  # a single token is a bar too
    return _drawn(canvas)


def _canvas() -> tuple[Any, Axes]:
    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    return FigureCanvasAgg(figure), figure.subplots()


def _drawn(canvas: Any) -> NDArray[np.uint8]:  # matplotlib does not type its canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


__all__ = ["distance_image", "loss_image"]
