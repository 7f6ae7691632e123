"""Figure 5: D_OT of every prefix before, after OPD and after TOPD."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from topd_ray.messages import Floats
from topd_ray.reports.probing_figures import D_OT_LABEL
from topd_ray.reports.report import Plot
from topd_ray.reports.style import BLUE, DASHES, GREEN, GREY, INK, drawing, new_figure
from topd_ray.statistics import Estimate

_COLOURS = (GREY, BLUE, GREEN)
_SPREAD = 0.28


def correction_plot(
    distances: Mapping[str, Floats],
    estimates: Mapping[str, Estimate],
    *,
    updates: int,
    threshold: float,
) -> Plot:
    """Return one column of points a state, with the mean and its interval beside it.

    `distances` holds the D_OT of all prefixes by the name of the state, `estimates` the
    mean of the same; `threshold` is the D_OT above which a prefix is divergent.
    """
    with drawing():
        figure, (axes,) = new_figure(width_in=5.6, height_in=3.6)
        for place, (name, values) in enumerate(distances.items()):
            _draw_state(axes, place, values, estimates[name])
        axes.axhline(threshold, color=GREY, linewidth=1, linestyle=DASHES)
        axes.annotate(
            "divergent above",
            (1.0, threshold),
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


def _draw_state(axes: Axes, place: int, values: Floats, mean: Estimate) -> None:
    axes.scatter(
        place + _beeswarm(values),
        values,
        s=12,
        color=_COLOURS[place],
        alpha=0.45,
        linewidths=0,
    )
    beside = place + _SPREAD + 0.1
    # the interval of a single prefix is nan, which errorbar refuses
    low, high = np.nan_to_num([mean.value - mean.low, mean.high - mean.value])
    axes.errorbar(
        [beside],
        [mean.value],
        yerr=[[low], [high]],
        fmt="D",
        color=INK,
        markersize=4,
        capsize=3,
    )
    axes.annotate(
        f"{mean.value:.3f}",
        (beside, mean.value),
        (6, 0),
        textcoords="offset points",
        va="center",
        fontweight="bold",
    )


def _beeswarm(values: Floats) -> Floats:
    """Return sideways offsets that keep crowded values apart.

    The pattern is fixed: random offsets would change the figure's bytes.
    """
    order = np.argsort(values, kind="stable")
    # Multiples of the golden ratio spread neighbours in rank evenly over the width.
    golden = (np.arange(len(values)) * 0.618034) % 1.0
    offsets = np.empty(len(values), np.float32)
    offsets[order] = (golden - 0.5) * 2 * _SPREAD
    return offsets


__all__ = ["correction_plot"]
