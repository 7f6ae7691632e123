"""Figure 5: every prefix before, after OPD and after TOPD."""

from collections.abc import Mapping

import numpy as np

from topd_ray.messages import Floats
from topd_ray.reports.probing_figures import D_OT_LABEL
from topd_ray.reports.report import Plot
from topd_ray.reports.style import BLUE, GREEN, GREY, INK, drawing, new_figure
from topd_ray.statistics import Estimate

_COLOURS = (GREY, BLUE, GREEN)
_SPREAD = 0.28


def correction_plot(
    distances: Mapping[str, Floats],
    estimates: Mapping[str, Estimate],
    *,
    updates: int,
    line: float,
) -> Plot:
    """Points side by side, the mean with its interval beside them."""
    with drawing():
        figure, (axes,) = new_figure(width_in=5.6, height_in=3.6)
        for place, (name, values) in enumerate(distances.items()):
            colour, mean = _COLOURS[place], estimates[name]
            offsets = _beeswarm(values)
            axes.scatter(
                place + offsets, values, s=12, color=colour, alpha=0.45, linewidths=0
            )
            at = place + _SPREAD + 0.1
            low, high = np.nan_to_num([mean.value - mean.low, mean.high - mean.value])
            axes.errorbar(
                [at],
                [mean.value],
                yerr=[[low], [high]],
                fmt="D",
                color=INK,
                markersize=4,
                capsize=3,
            )
            axes.annotate(
                f"{mean.value:.3f}",
                (at, mean.value),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontweight="bold",
            )
        axes.axhline(line, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
        axes.annotate(
            "divergent above",
            (1.0, line),
            (-2, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=GREY,
        )
        count = len(next(iter(distances.values())))
        axes.set_xticks(range(len(distances)), list(distances))
        axes.set_xlim(-0.5, len(distances) - 0.1)
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.grid(axis="y")
        axes.set_ylabel(D_OT_LABEL)
        axes.set_title(f"The same {count} prefixes, {updates} updates on the window")
    return Plot(
        name="distances",
        caption=(
            "D_OT of the regenerated continuation to the teacher's, one point a prefix,"
            " with mean and 95 % interval, as in figure 5 of the paper."
        ),
        figure=figure,
    )


def _beeswarm(values: Floats) -> Floats:
    """Sideways places that leave crowded values apart: a fixed pattern, no
    randomness.
    """
    order = np.argsort(values, kind="stable")
    golden = (
        np.arange(len(values)) * 0.618034
    ) % 1.0  # spreads neighbours in rank evenly
    offsets = np.empty(len(values), np.float32)
    offsets[order] = (golden - 0.5) * 2 * _SPREAD
    return offsets


__all__ = ["correction_plot"]
