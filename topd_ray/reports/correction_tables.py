"""Corrections -> Report: the tables and the summary of the correction study.

Axes: P prefixes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from topd_ray.config import Config
from topd_ray.messages import Floats, Ints
from topd_ray.reports.correction_figures import correction_plot
from topd_ray.reports.gradient_table import GradientPair, gradients_table
from topd_ray.reports.report import Cell, Report, Table
from topd_ray.statistics import (
    Estimate,
    bootstrap,
    mean,
    median,
    paired_difference,
)

WindowOf = Literal["student", "teacher"]
"""Whose window the updates are made on."""
STATES = {"before": "before", "opd": "after OPD", "topd": "after TOPD"}
PAPER_MEANS = {"before": 0.538, "opd": 0.350, "topd": 0.204}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Continuations of all prefixes in one state, compared with the teacher's."""

    d_ot_P: Floats
    """D_OT between the continuation and the teacher's."""
    lead_P: Ints
    """Leading tokens that are the same as the teacher's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedPrefix:
    """A divergent prefix as the run probed it, before any update."""

    prompt_id: str
    rollout_id: str
    position: int
    """Position of the candidate in the response."""
    loss: float
    """Token loss at the candidate, in nats."""
    d_ot: float
    """D_OT between the rollout's window and the teacher's continuation."""
    lead: int
    """Leading tokens of the rollout's window that are the teacher's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Outcomes at one learning rate on one kind of window, by state (see STATES)."""

    lr: float
    on: WindowOf
    states: dict[str, Outcome]


def common_lead(a: Ints, b: Ints) -> int:
    """Return how many leading tokens are the same."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def analyse(
    prefixes: Sequence[CorrectedPrefix],
    pairs: Sequence[GradientPair],
    results: Sequence[Correction],
    config: Config,
    *,
    threshold: float,
    study_seed: int,
    resamples: int,
    updates: int,
    temperature: float,
) -> Report:
    """Return all tables and the figure of the study.

    The first of `results` is the study's own learning rate and window. `threshold` is
    the D_OT above which a prefix is divergent, `updates` the number of updates a prefix
    got, `temperature` that of the regenerated continuations, `pairs` the gradients on
    each prefix's window before any of them.
    """
    main = results[0]
    distances = {state: main.states[state].d_ot_P for state in STATES}
    estimates = {
        state: bootstrap(
            mean,
            values,
            seed=study_seed,
            resamples=resamples,
            # Prefixes of one prompt depend on each other.
            clusters=[prefix.prompt_id for prefix in prefixes],
        )
        for state, values in distances.items()
    }
    states = _states_table(prefixes, threshold, main, estimates)
    return Report(
        study="correction",
        title="Local correction: one window, a few updates (section 5.2)",
        summary=_summary(prefixes, threshold, main, config, updates, temperature),
        tables=[
            states,
            _pairs_table(distances, study_seed),
            gradients_table(
                pairs,
                window=config.probe.window,
                seed=study_seed,
                resamples=resamples,
            ),
            _rates_table(results, study_seed),
            _prefixes_table(prefixes, main),
        ],
        plots=[
            correction_plot(
                {STATES[state]: distances[state] for state in STATES},
                {STATES[state]: estimates[state] for state in STATES},
                updates=updates,
                threshold=threshold,
            )
        ],
        numbers={"num_prefixes": len(prefixes), "divergence_line": threshold},
    )


def _states_table(
    prefixes: Sequence[CorrectedPrefix],
    threshold: float,
    main: Correction,
    estimates: dict[str, Estimate],
) -> Table:
    probed = np.array([prefix.d_ot for prefix in prefixes])
    own_lead = np.array([prefix.lead for prefix in prefixes])
    rows: list[tuple[Cell, ...]] = [
        (
            "the rollout's own window",
            mean(probed),
            None,
            *_row(probed, own_lead, threshold),
        )
    ]
    for state, name in STATES.items():
        outcome = main.states[state]
        rows.append(
            (
                name,
                estimates[state],
                PAPER_MEANS[state],
                *_row(outcome.d_ot_P, outcome.lead_P, threshold),
            )
        )
    return Table(
        name="states",
        title="D_OT to the teacher's continuation (figure 5)",
        columns=(
            "continuation",
            "mean D_OT",
            "paper's mean",
            "median D_OT",
            "share back below the line",
            "share whose first token is the teacher's",
            "of those, still above the line",
            "tokens in step with the teacher",
        ),
        rows=rows,
        note=(
            "95 % bootstrap intervals over prompts. The line is the D_OT above which"
            " the run would call a candidate divergent. First token right and window"
            " still above the line is the paper's token-by-token learning trap."
        ),
    )


def _row(d_ot_P: Floats, lead_P: Ints, threshold: float) -> tuple[float, ...]:
    first_P = lead_P > 0
    return (
        median(d_ot_P),
        mean(d_ot_P <= threshold),
        mean(first_P),
        # The paper's learning trap: the right first token, and still another way.
        mean(d_ot_P[first_P] > threshold),
        mean(lead_P),
    )


def _pairs_table(distances: dict[str, Floats], seed: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for a, b in (("before", "opd"), ("before", "topd"), ("opd", "topd")):
        paired = paired_difference(distances[a], distances[b], seed=seed)
        name = f"{STATES[b]} minus {STATES[a]}"
        p_values = (paired.p_t, paired.p_wilcoxon, paired.p_sign_flip)
        rows.append((name, paired.mean, *p_values))
    return Table(
        name="pairs",
        title="Paired by prefix",
        columns=(
            "difference of D_OT",
            "mean",
            "p, t test",
            "p, Wilcoxon",
            "p, sign flips",
        ),
        rows=rows,
        note="t-interval of the mean; two-sided p. Negative: closer to the teacher.",
    )


def _rates_table(results: Sequence[Correction], seed: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        distances = {state: result.states[state].d_ot_P for state in STATES}
        gap = paired_difference(distances["opd"], distances["topd"], seed=seed).mean
        means = (mean(distances[state]) for state in STATES)
        rows.append((f"the {result.on}'s", f"{result.lr:g}", *means, gap))
    return Table(
        name="rates",
        title="Mean D_OT by window and learning rate",
        columns=("window", "learning rate", *STATES.values(), "TOPD minus OPD, paired"),
        rows=rows,
        note=(
            "The first row is the study's own; the paper gives no learning rate. Where"
            " the window is the teacher's, the student learns along the continuation it"
            " is then measured by, and L_traj is the cross entropy of its tokens."
        ),
    )


def _prefixes_table(prefixes: Sequence[CorrectedPrefix], main: Correction) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            prefix.prompt_id,
            prefix.rollout_id,
            prefix.position,
            prefix.loss,
            prefix.d_ot,
            *(float(main.states[state].d_ot_P[row]) for state in STATES),
            *(int(main.states[state].lead_P[row]) for state in STATES),
        )
        for row, prefix in enumerate(prefixes)
    ]
    return Table(
        name="prefixes",
        title="Every prefix",
        columns=(
            "prompt",
            "rollout",
            "position",
            "loss",
            "d_ot_probed",
            *(f"d_ot_{state}" for state in STATES),
            *(f"lead_{state}" for state in STATES),
        ),
        rows=rows,
        shown=False,
    )


def _summary(
    prefixes: Sequence[CorrectedPrefix],
    threshold: float,
    main: Correction,
    config: Config,
    updates: int,
    temperature: float,
) -> list[str]:
    means = {state: mean(main.states[state].d_ot_P) for state in STATES}
    gap = paired_difference(
        main.states["opd"].d_ot_P, main.states["topd"].d_ot_P, seed=0
    ).mean
    # Better or worse only where the whole interval says so.
    order = "TOPD and OPD do not differ beyond chance, unlike in the paper"
    if gap.high < 0:
        order = "TOPD ends closer to the teacher than OPD, as in the paper"
    elif gap.low > 0:
        order = "TOPD ends farther from the teacher than OPD, unlike in the paper"
    shown = ", ".join(f"{STATES[state]} {value:.3f}" for state, value in means.items())
    decoding = "greedily" if temperature == 0 else f"at {temperature:g}"
    return [
        (
            f"{len(prefixes)} divergent prefixes, at most one a rollout: the candidate"
            " of highest token loss among those whose D_OT exceeds"
            f" {threshold:.3f} (the"
            f" {config.windows.divergence.quantile:g} quantile of all candidates')."
            f" From the same start, M = {updates} updates of AdamW at learning"
            f" rate {main.lr:g} on the student's own window of K ="
            f" {config.probe.window} tokens: OPD by reverse KL under the live teacher,"
            f" TOPD with {config.objective.lambda_traj:g} L_traj beside it. Weights and"
            " optimizer are restored exactly after each."
        ),
        (
            f"The prefix is then continued anew, {decoding}, and compared with the"
            f" teacher's continuation: {order} ({shown}; TOPD minus OPD {gap})."
        ),
        (
            "The paper's section 2.2 trains on the student's regenerated window, its"
            " section 5.2 takes the teacher's continuation as the target in the window."
            " Here the window is the student's own, as in training, and the teacher's"
            " continuation enters by the plan of L_traj alone; the other reading is in"
            " the table by window. The row before is decoded like the rows after, so"
            " that decoding accounts for no difference; the rollout's own window,"
            " sampled, stands above it."
        ),
    ]


__all__ = [
    "CorrectedPrefix",
    "Correction",
    "Outcome",
    "WindowOf",
    "analyse",
    "common_lead",
]
