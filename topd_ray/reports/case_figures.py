"""Figure 3: each continuation as a row of tokens, and the probabilities at the fork."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.typing import ColorType

from topd_ray.reports.case_types import METHODS, Case, CaseState
from topd_ray.reports.report import Plot
from topd_ray.reports.style import BLUE, GREEN, INK, VERMILION, drawing, new_figure

_SURPRISE = LinearSegmentedColormap.from_list(
    "surprise", ["#FFFFFF", "#F6C9A8", VERMILION]
)
_TEACHER_CELL = "#E8F3EE"
_WORST_NATS = 8.0
"""End of the colour scale: a token with a teacher's probability of 1 in 3,000."""
_FLOOR = 1e-6
_LONGEST_TOKEN = 9
"""Characters that fit into one cell."""


def continuation_plot(case: Case) -> Plot:
    """Return rows of tokens, coloured by -log p under the teacher in their context."""
    columns = max(len(case.teacher), *(len(state.steps) for state in case.states))
    num_rows = 1 + len(case.states)
    norm = Normalize(0.0, _WORST_NATS)
    with drawing():
        figure, (axes,) = new_figure(
            width_in=1.4 + 0.72 * columns, height_in=1.2 + 0.3 * num_rows
        )
        end = _draw_rows(axes, case, norm)
        axes.set_xlim(0, columns)
        axes.set_ylim(end, 0)
        axes.set_yticks([])
        axes.set_xticks(
            [column + 0.5 for column in range(columns)],
            [str(column) for column in range(columns)],
        )
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("tokens from the fork on")
        axes.set_title("Greedy continuations from the same prefix")
        _draw_colour_bar(figure, axes, norm)
    return Plot(
        name="continuations",
        caption=(
            "The student's continuation before and after each update. Colour: -log p of"
            " the token under the teacher in the same context; bold: the token that"
            " stands there in the teacher's own continuation."
        ),
        figure=figure,
    )


def fork_plot(case: Case) -> Plot:
    """Return the student's probability of both tokens at the fork, by update."""
    before, *after = case.states
    with drawing():
        figure, panels = new_figure(1, 2, width_in=6.4, height_in=2.9, share_y=True)
        for axes, method in zip(panels, METHODS.values(), strict=True):
            updated = [state for state in after if state.method == method]
            _draw_method(axes, case, [before, *updated])
        panels[0].set_ylabel("probability")
        panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Plot(
        name="fork",
        caption=(
            "The student's probability of both tokens at the fork (a gap: not among its"
            " likeliest), and how likely the teacher finds the continuation that"
            " follows: the geometric mean of its probabilities."
        ),
        figure=figure,
    )


def _draw_rows(axes: Axes, case: Case, norm: Normalize) -> float:
    """Draw the teacher's row and a row per state; return where the last one ends."""
    _draw_name(axes, 0.0, "teacher")
    for column, token in enumerate(case.teacher):
        _draw_cell(axes, column, 0.0, token, _TEACHER_CELL, bold=True)
    gap = 0.0
    for row, state in enumerate(case.states, start=1):
        # A gap before the first state and before the first update of each method.
        if row == 1 or state.updates == 1:
            gap += 0.35
        _draw_name(axes, row + gap, state.name)
        for column, step in enumerate(state.steps):
            colour = _SURPRISE(norm(_nats(step.p_teacher)))
            agrees = case.teacher[column : column + 1] == (step.token,)
            _draw_cell(axes, column, row + gap, step.token, colour, bold=agrees)
    return 1 + len(case.states) + gap


def _draw_name(axes: Axes, top: float, name: str) -> None:
    axes.text(-0.15, top + 0.5, name, ha="right", va="center")


def _draw_cell(
    axes: Axes, column: int, top: float, token: str, colour: ColorType, *, bold: bool
) -> None:
    axes.add_patch(Rectangle((column, top), 1, 1, facecolor=colour, edgecolor="white"))
    fits = len(token) <= _LONGEST_TOKEN
    axes.text(
        column + 0.5,
        top + 0.5,
        token if fits else token[: _LONGEST_TOKEN - 1] + "…",
        ha="center",
        va="center",
        fontsize=8,
        fontweight="bold" if bold else "normal",
        color=INK,
    )


def _draw_colour_bar(figure: Figure, axes: Axes, norm: Normalize) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm, _SURPRISE), ax=axes, fraction=0.03, pad=0.01, extend="max"
    )
    bar.set_label("teacher's surprise (nats)")
    bar.outline.set_visible(False)


def _draw_method(axes: Axes, case: Case, states: Sequence[CaseState]) -> None:
    """Draw both tokens' probabilities and the teacher's mean over the continuation."""
    teacher_token = case.teacher[0]
    own_token = case.states[0].steps[0].token
    updates = [state.updates for state in states]
    for token, colour, label in (
        (teacher_token, GREEN, f"teacher's token: {teacher_token}"),
        (own_token, VERMILION, f"student's token: {own_token}"),
    ):
        shares = [dict(state.steps[0].student).get(token, math.nan) for state in states]
        axes.plot(updates, shares, "o-", color=colour, markersize=4, label=label)
    axes.plot(
        updates,
        [_mean_p_teacher(state) for state in states],
        "s--",
        color=BLUE,
        markersize=3.5,
        label="teacher's view of all\ntokens (geometric mean)",
    )
    axes.set_title(states[-1].method)
    axes.set_xlabel("updates")
    axes.set_xticks(updates)
    axes.grid(axis="y")
    # Beyond 0 and 1, so that no marker is cut.
    axes.set_ylim(-0.03, 1.03)


def _mean_p_teacher(state: CaseState) -> float:
    """Return the geometric mean of the teacher's probabilities of a continuation."""
    # One token of probability 0 would make the mean 0.
    logs = [math.log(max(step.p_teacher, _FLOOR)) for step in state.steps]
    return math.exp(sum(logs) / len(logs))


def _nats(p: float) -> float:
    return -math.log(max(p, math.exp(-_WORST_NATS)))


__all__ = ["continuation_plot", "fork_plot"]
