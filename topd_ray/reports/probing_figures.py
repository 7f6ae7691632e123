"""Figures 2, 4 and 6: D_OT by group, its histogram, and against the token loss.

Axes: W windows.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from topd_ray.messages import Floats
from topd_ray.reports.report import Plot
from topd_ray.reports.style import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    INK,
    ORANGE,
    VERMILION,
    drawing,
    new_figure,
)
from topd_ray.reports.token_kinds import Kinds
from topd_ray.statistics import binned_means, median

D_OT_LABEL = "short-window OT distance $D_{OT}$ (1 $-$ cosine)"
_GROUP_COLOURS = (VERMILION, GREY, BLUE)
_LOSS_LABELS = {
    "reverse_kl": "token loss KL(student || teacher) (nats)",
    "log_ratio": "token loss log p$_S$ - log p$_T$ (nats)",
    "teacher_nll": "token loss -log p$_T$ (nats)",
}
_KIND_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, GREY)
_NUM_BARS = 40
_LOG_SCALE_FROM = 30
"""Largest over smallest loss from which on the axis of losses is logarithmic."""


def divergence_plot(groups: Mapping[str, Floats], *, window: int) -> Plot:
    """Return figure 2: the density of D_OT in each group, its quartiles and median.

    `groups` holds the D_OT of each group; `window` is K, in tokens.
    """
    with drawing():
        figure, (axes,) = new_figure(width_in=5.6, height_in=3.4)
        columns = zip(groups.values(), _GROUP_COLOURS, strict=True)
        for place, (values, colour) in enumerate(columns):
            _draw_group(axes, place, values, colour)
        labels = [f"{name}\nn = {len(values):,}" for name, values in groups.items()]
        axes.set_xticks(range(len(labels)), labels)
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.set_ylabel(D_OT_LABEL)
        axes.set_title(f"Near-future divergence, K = {window} tokens")
    return Plot(
        name="divergence",
        caption=(
            "D_OT of high-loss, random and low-loss positions: density, quartiles (bar)"
            " and median (dot), as in figure 2 of the paper."
        ),
        figure=figure,
    )


def histogram_plot(
    d_ot_W: Floats, kinds: Kinds, *, quartile: float, false_alarms: float
) -> Plot:
    """Return figure 4: high-loss positions by D_OT.

    The bars of the kinds of tokens are stacked. `quartile` is the upper quartile of the
    low-loss windows, `false_alarms` the share at or below it.
    """
    with drawing():
        figure, (axes,) = new_figure(width_in=5.6, height_in=3.2)
        _draw_bars(axes, d_ot_W, kinds)
        axes.axvline(quartile, color=INK, linewidth=1.2, linestyle=DASHES)
        axes.margins(x=0)
        # Room above the bars for the text beside the line.
        axes.set_ylim(top=axes.get_ylim()[1] * 1.18)
        axes.annotate(
            f"low-loss upper quartile {quartile:.3f}\n{false_alarms:.1%} at or below",
            (quartile, 1.0),
            (5, -3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
        )
        axes.set_xlabel(D_OT_LABEL)
        axes.set_ylabel("high-loss positions")
        axes.set_title("Where high-loss tokens lead")
    return Plot(
        name="histogram",
        caption=(
            "D_OT of high-loss positions and the line below which the paper calls them"
            " false alarms, as in figure 4."
        ),
        figure=figure,
    )


def scatter_plot(
    losses_W: Floats, d_ot_W: Floats, *, bins: int, loss_name: str
) -> Plot:
    """Return figure 6: every high-loss position, and the means of slices of loss.

    The `bins` slices hold equally many positions each; `loss_name` is a value of
    `candidates.loss`.
    """
    with drawing():
        figure, (axes,) = new_figure(width_in=5.6, height_in=3.4)
        axes.scatter(
            losses_W, d_ot_W, s=9, color=BLUE, alpha=0.3, linewidths=0, label="position"
        )
        _draw_means(axes, losses_W, d_ot_W, bins)
        axes.axhline(
            median(d_ot_W), color=GREEN, linewidth=1, linestyle=DASHES, label="median"
        )
        if _spans_decades(losses_W):
            axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.grid()
        axes.legend(
            loc="upper left", ncols=3, bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2
        )
        # Room above the points for the legend.
        axes.set_ylim(top=axes.get_ylim()[1] * 1.12)
        axes.set_xlabel(_LOSS_LABELS[loss_name])
        axes.set_ylabel(D_OT_LABEL)
        axes.set_title("Token loss and near-future divergence")
    return Plot(
        name="scatter",
        caption="Token loss against D_OT at high-loss positions, as in figure 6.",
        figure=figure,
    )


def _draw_group(axes: Axes, place: int, values: Floats, colour: str) -> None:
    """Draw one violin with its quartiles, and write the median beside it."""
    # matplotlib estimates a density: it has none of one value or of a constant
    if len(values) > 1 and np.ptp(values) > 0:
        violin = axes.violinplot(values, [place], widths=0.8, showextrema=False)
        for body in violin["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=colour, edgecolor="none", alpha=0.35)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    axes.plot(
        [place, place], [low, high], color=colour, linewidth=5, solid_capstyle="butt"
    )
    axes.plot(
        [place], [middle], "o", color="white", markeredgecolor=colour, markersize=5
    )
    axes.annotate(
        f"{middle:.3f}",
        (place, middle),
        (9, 0),
        textcoords="offset points",
        va="center",
    )


def _draw_bars(axes: Axes, d_ot_W: Floats, kinds: Kinds) -> None:
    largest = float(d_ot_W.max(initial=0.0)) or 1.0
    edges = np.linspace(0.0, largest, _NUM_BARS + 1).tolist()
    axes.hist(
        [d_ot_W[kinds.of_W == kind] for kind in kinds.names],
        bins=edges,
        stacked=True,
        color=[_KIND_COLOURS[i % len(_KIND_COLOURS)] for i in range(len(kinds.names))],
        label=list(kinds.names),
    )
    if len(kinds.names) > 1:
        axes.legend(loc="upper right")


def _draw_means(axes: Axes, losses_W: Floats, d_ot_W: Floats, bins: int) -> None:
    slices = binned_means(losses_W, d_ot_W, bins=bins)
    means = [part.y.value for part in slices]
    below = [part.y.value - part.y.low for part in slices]
    above = [part.y.high - part.y.value for part in slices]
    axes.errorbar(
        [part.x for part in slices],
        means,
        # the interval of a slice with one position is nan, which errorbar refuses
        yerr=np.nan_to_num([below, above]) if slices else None,
        color=VERMILION,
        marker="o",
        markersize=4,
        linewidth=1.4,
        elinewidth=1,
        capsize=2,
        label="mean of a slice, 95 %",
    )


def _spans_decades(losses_W: Floats) -> bool:
    if not len(losses_W) or losses_W.min() <= 0:
        return False
    return bool(losses_W.max() / losses_W.min() > _LOG_SCALE_FROM)


__all__ = ["D_OT_LABEL", "divergence_plot", "histogram_plot", "scatter_plot"]
