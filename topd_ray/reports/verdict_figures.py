"""The AUROC of every verdict, with its interval."""

from collections.abc import Iterator, Mapping
from itertools import cycle

from matplotlib.axes import Axes

from topd_ray.reports.report import Plot
from topd_ray.reports.style import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    drawing,
    new_figure,
)
from topd_ray.statistics import Estimate

_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, GREY)


def auroc_plot(families: Mapping[str, Mapping[str, Estimate]]) -> Plot:
    """Return one row a verdict, the first uppermost; a family has one colour.

    `families` holds the areas of each family by the name of the verdict.
    """
    num_rows = sum(len(areas) for areas in families.values())
    with drawing():
        figure, (axes,) = new_figure(width_in=6.4, height_in=0.9 + 0.22 * num_rows)
        axes.margins(y=0.03)
        names = list(_draw_rows(axes, families))
        axes.set_yticks([-row for row in range(num_rows)], names)
        axes.tick_params(axis="y", length=0)
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=DASHES)
        axes.set_xlim(right=1.0)
        axes.grid(axis="x")
        axes.set_xlabel("AUROC, forks against wording")
        axes.set_title("Which score tells a fork from wording")
    return Plot(
        name="auroc",
        caption=(
            "AUROC of every verdict with its 95 % interval; the broken line is a coin."
        ),
        figure=figure,
    )


def _draw_rows(
    axes: Axes, families: Mapping[str, Mapping[str, Estimate]]
) -> Iterator[str]:
    """Draw the verdicts from the top down, and yield their names."""
    row = 0
    for colour, areas in zip(cycle(_COLOURS), families.values(), strict=False):
        for name, area in areas.items():
            ends = [area.low, area.high]
            axes.plot(ends, [row, row], color=colour, linewidth=3, alpha=0.35)
            # An area of 1 lies on the edge of the panel.
            axes.plot(
                [area.value], [row], "o", color=colour, markersize=5, clip_on=False
            )
            yield name
            row -= 1


__all__ = ["auroc_plot"]
