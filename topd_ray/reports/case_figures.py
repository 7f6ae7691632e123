"""A fork as pictures: every continuation as a row of tokens, and the odds at the fork
itself.
"""

import math
from typing import TYPE_CHECKING

from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle

from topd_ray.reports.report import Plot
from topd_ray.reports.style import BLUE, GREEN, INK, VERMILION, drawing, new_figure

if TYPE_CHECKING:
    from topd_ray.studies.case import Case

_SURPRISE = LinearSegmentedColormap.from_list(
    "surprise", ["#FFFFFF", "#F6C9A8", VERMILION]
)
_WORST_NATS = 8.0
"""Of the colour scale: the teacher gives such a token a probability of 1 in 3,000."""
_FLOOR = 1e-6


def continuation_plot(case: "Case") -> Plot:
    """Rows of tokens, coloured by how little the teacher would have said them there."""
    rows = [("teacher", [(token, None) for token in case.teacher])] + [
        (state.name, [(step.token, step.p_teacher) for step in state.steps])
        for state in case.states
    ]
    columns = max(len(tokens) for _, tokens in rows)
    norm = Normalize(0.0, _WORST_NATS)
    with drawing():
        figure, (axes,) = new_figure(
            width_in=1.4 + 0.72 * columns, height_in=1.2 + 0.3 * len(rows)
        )
        gap = 0.0
        for row, (name, tokens) in enumerate(rows):
            gap += 0.35 if row == 1 or name.endswith(" 1") else 0.0
            place = row + gap
            axes.text(-0.15, place + 0.5, name, ha="right", va="center")
            for column, (token, p_teacher) in enumerate(tokens):
                colour = (
                    "#E8F3EE"
                    if p_teacher is None
                    else _SURPRISE(norm(_nats(p_teacher)))
                )
                axes.add_patch(
                    Rectangle(
                        (column, place), 1, 1, facecolor=colour, edgecolor="white"
                    )
                )
                follows = column < len(case.teacher) and token == case.teacher[column]
                axes.text(
                    column + 0.5,
                    place + 0.5,
                    token if len(token) <= 9 else token[:8] + "…",
                    ha="center",
                    va="center",
                    fontsize=8,
                    fontweight="bold" if follows else "normal",
                    color=INK,
                )
        axes.set_xlim(0, columns)
        axes.set_ylim(len(rows) + gap, 0)
        axes.set_yticks([])
        axes.set_xticks(
            [c + 0.5 for c in range(columns)], [str(c) for c in range(columns)]
        )
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("tokens from the fork on")
        axes.set_title("Greedy continuations from the same prefix")
        bar = figure.colorbar(
            ScalarMappable(norm, _SURPRISE),
            ax=axes,
            fraction=0.03,
            pad=0.01,
            extend="max",
        )
        bar.set_label("teacher's surprise (nats)")
        bar.outline.set_visible(False)
    return Plot(
        name="continuations",
        caption=(
            "The student's continuation before and after each update. Colour: -log p of"
            " the token under the teacher in the same context; bold: the token that"
            " stands there in the teacher's own continuation."
        ),
        figure=figure,
    )


def fork_plot(case: "Case") -> Plot:
    """At the fork: the student's probability of its own and of the teacher's token, by
    update.
    """
    teacher_token, own_token = case.teacher[0], case.states[0].steps[0].token
    before, *after = case.states
    with drawing():
        figure, axes = new_figure(1, 2, width_in=6.4, height_in=2.9, sharey=True)
        for one, method in zip(axes, ("OPD", "TOPD"), strict=True):
            states = [before, *(state for state in after if state.method == method)]
            updates = [state.updates for state in states]
            for token, colour, label in (
                (teacher_token, GREEN, f"teacher's token: {teacher_token}"),
                (own_token, VERMILION, f"student's token: {own_token}"),
            ):
                shares = [
                    dict(state.steps[0].student).get(token, math.nan)
                    for state in states
                ]
                one.plot(updates, shares, "o-", color=colour, markersize=4, label=label)
            sure = [
                math.exp(
                    sum(math.log(max(step.p_teacher, _FLOOR)) for step in state.steps)
                    / len(state.steps)
                )
                for state in states
            ]
            one.plot(
                updates,
                sure,
                "s--",
                color=BLUE,
                markersize=3.5,
                label="teacher's view of all\ntokens (geometric mean)",
            )
            one.set_title(method)
            one.set_xlabel("updates")
            one.set_xticks(updates)
            one.grid(axis="y")
            one.set_ylim(-0.03, 1.03)
        axes[0].set_ylabel("probability")
        axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Plot(
        name="fork",
        caption=(
            "The student's probability of both tokens at the fork (a gap: not among its"
            " likeliest), and how likely the teacher finds the continuation that"
            " follows: the geometric mean of its probabilities."
        ),
        figure=figure,
    )


def _nats(p: float) -> float:
    return -math.log(max(p, math.exp(-_WORST_NATS)))


__all__ = ["continuation_plot", "fork_plot"]
