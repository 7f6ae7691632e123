"""Accuracy of every variant: against the baseline, over steps and CPU seconds."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topd_ray.reports.ablation_results import Curve
from topd_ray.reports.report import Plot
from topd_ray.reports.style import BLUE, GREY, INK, ORANGE, drawing, new_figure
from topd_ray.statistics import t_interval

WARM_START = "warm start"
"""Name of the row of the models that the runs start from."""
_COLUMNS = 4


def accuracy_plot(
    after: Mapping[str, Sequence[float]], warm: Sequence[float], *, baseline: str
) -> Plot:
    """Return accuracies (%) on the left and paired differences on the right.

    `after` holds one accuracy per seed for each variant, `warm` those of the starts.
    """
    return Plot(
        name="accuracy",
        caption=(
            "Accuracy after training, and the same against the baseline: points"
            " are seeds, bars 95 % intervals."
        ),
        figure=_accuracy_figure({WARM_START: warm, **after}, baseline),
    )


def curve_plot(curves: Mapping[str, Sequence[Curve]], *, baseline: str) -> Plot:
    """Return one panel a variant: its mean curve, and the baseline's in grey."""
    return Plot(
        name="curves",
        caption="Accuracy while training, mean over seeds.",
        figure=_curve_figure(curves, baseline, "optimizer steps"),
    )


def seconds_plot(curves: Mapping[str, Sequence[Curve]], *, baseline: str) -> Plot:
    """Return the panels of `curve_plot`, over CPU seconds instead of steps."""
    return Plot(
        name="seconds",
        caption="Accuracy against CPU seconds, both means over seeds.",
        figure=_curve_figure(curves, baseline, "CPU seconds"),
    )


def _accuracy_figure(values: Mapping[str, Sequence[float]], baseline: str) -> Figure:
    with drawing():
        figure, (left, right) = new_figure(
            1, 2, width_in=9.0, height_in=0.9 + 0.26 * len(values), share_y=True
        )
        # Reversed: the first row of the table is the uppermost of the figure.
        names = list(values)[::-1]
        for row, name in enumerate(names):
            _draw_row(left, row, values[name])
            if name not in (WARM_START, baseline):
                gains = np.subtract(values[name], values[baseline]).tolist()
                _draw_row(right, row, gains)
        left.set_yticks(range(len(names)), names)
        left.set_xlabel("accuracy on held-out problems, %")
        right.axvline(0, color=INK, linewidth=1)
        right.set_xlabel(f"against {baseline}, paired by seed, points")
        for axes in (left, right):
            axes.grid(axis="x")
    return figure


def _draw_row(axes: Axes, row: int, values: Sequence[float]) -> None:
    estimate = t_interval(values)
    axes.plot(
        [estimate.low, estimate.high], [row, row], color=BLUE, linewidth=3, alpha=0.35
    )
    axes.plot(values, [row] * len(values), "o", color=GREY, markersize=3)
    axes.plot(estimate.value, row, "D", color=BLUE, markersize=5)


def _curve_figure(
    curves: Mapping[str, Sequence[Curve]], baseline: str, x_label: str
) -> Figure:
    rows = -(-len(curves) // _COLUMNS)  # rounded up
    with drawing():
        figure, panels = new_figure(
            rows,
            _COLUMNS,
            width_in=8.4,
            height_in=0.6 + 1.5 * rows,
            share_x=True,
            share_y=True,
        )
        baseline_curve = _mean_curve(curves[baseline])
        for axes, (name, runs) in zip(panels, curves.items(), strict=False):
            axes.plot(*baseline_curve, color=GREY, linewidth=1, label=baseline)
            axes.plot(*_mean_curve(runs), color=ORANGE, marker="o", markersize=3)
            axes.set_title(name, fontsize=8)
            axes.grid()
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        figure.supxlabel(x_label, fontsize=9)
        figure.supylabel("accuracy, %", fontsize=9)
    return figure


def _mean_curve(runs: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """Return the mean x and the mean accuracy (%) over the runs at each evaluation."""
    # Runs of a variant differ in seed and start alone: equal steps are evaluated.
    mean_XY = np.mean([list(curve) for curve in runs], axis=0)
    return mean_XY[:, 0].tolist(), (100 * mean_XY[:, 1]).tolist()


__all__ = ["WARM_START", "accuracy_plot", "curve_plot", "seconds_plot"]
