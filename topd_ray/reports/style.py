"""One look for all figures: matplotlib's object interface, no global state, same bytes
each time.

Colours are Okabe and Ito's, which most colour-blind readers can tell apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, GREY, FAINT = "#222222", "#767676", "#D9D9D9"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)

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
    """The style, inside; matplotlib as it was, outside."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    width_in: float = 6.4,
    height_in: float = 3.6,
    **grid: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row; only inside `drawing()`."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **grid)
    return figure, list(axes.flat)


def save_figure(figure: Figure, stem: Path) -> None:
    """`stem`.png and `stem`.svg, without dates, so that the same numbers give the same
    files.
    """
    with drawing():
        figure.savefig(f"{stem}.png", dpi=_DPI, metadata={"Software": None})
        figure.savefig(f"{stem}.svg", metadata={"Date": None})


__all__ = [
    "BLUE",
    "FAINT",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "drawing",
    "new_figure",
    "save_figure",
]
