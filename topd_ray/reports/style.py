"""One look for all figures: matplotlib's object interface and no global state.

The same numbers give the same bytes each time. Colours are Okabe and Ito's, which most
colour-blind readers can tell apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#222222"
GREY = "#767676"
FAINT = "#D9D9D9"
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"

DASHES = (0, (4, 2))
"""Line style of thresholds and other references."""

_STYLE: Any = {  # matplotlib types the keys one by one
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "svg.hashsalt": "topd_ray",  # else every element gets a new name each time
    "svg.fonttype": "none",
}
_DPI = 160


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the style inside the block and restore matplotlib's settings after it."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    width_in: float = 6.4,
    height_in: float = 3.6,
    share_x: bool = False,
    share_y: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row; call it only inside `drawing()`."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    # Without pyplot a figure has no canvas, and without a canvas it cannot be saved.
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y)
    return figure, list(axes.flat)


def save_figure(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.svg."""
    with drawing():
        # A date or a version in the metadata would change the bytes of equal figures.
        figure.savefig(f"{stem}.png", dpi=_DPI, metadata={"Software": None})
        figure.savefig(f"{stem}.svg", metadata={"Date": None})


__all__ = [
    "BLUE",
    "DASHES",
    "FAINT",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "VERMILION",
    "drawing",
    "new_figure",
    "save_figure",
]
