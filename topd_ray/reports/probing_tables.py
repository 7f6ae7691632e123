"""ProbedWindows -> Report: the tables and the summary of the probing study.

Axes: W windows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from topd_ray.config import Config
from topd_ray.messages import HIGH, LOW, RANDOM
from topd_ray.reports.probing_figures import (
    divergence_plot,
    histogram_plot,
    scatter_plot,
)
from topd_ray.reports.probing_windows import GROUP_NAMES, ProbedWindows, false_alarms
from topd_ray.reports.report import Cell, Report, Table
from topd_ray.reports.token_kinds import Kinds
from topd_ray.statistics import (
    Estimate,
    bootstrap,
    mean,
    median,
    pearson,
    share,
    spearman,
    upper_quartile,
)

PAPER_MEDIANS = {HIGH: 0.566, RANDOM: 0.361, LOW: 0.315}
PAPER_PEARSON = 0.126
PAPER_SPEARMAN = 0.143
PAPER_FALSE_ALARMS = 0.2923

Estimator = Callable[..., Estimate]
"""`bootstrap` with the study's seed, resamples and clusters."""


def analyse(
    windows: ProbedWindows,
    sensitivity: Sequence[tuple[str, ProbedWindows]],
    config: Config,
    *,
    study_seed: int,
    resamples: int,
    bins: int,
    kinds: Kinds,
) -> Report:
    """Return all tables and figures of the study.

    `sensitivity` holds the windows under each setting, the run's own first; `kinds`
    the kind of each window's first token; `resamples` and `bins` belong to the
    bootstrap and to the binned mean of figure 6.
    """
    # Windows of one prompt resemble each other, so the bootstrap draws whole prompts.
    estimate = partial(
        bootstrap, seed=study_seed, resamples=resamples, clusters=windows.prompts
    )
    high_W = windows.in_group(HIGH)
    quartile = upper_quartile(windows.d_ot_W[windows.in_group(LOW)])
    groups = _groups_table(windows, study_seed, resamples)
    relations = _relations_table(windows, estimate, study_seed, resamples)
    tables = [groups, relations]
    if len(kinds.names) > 1:
        tables.append(_kinds_table(windows, kinds, quartile))
    tables += [_sensitivity_table(sensitivity), _windows_table(windows, kinds)]
    false_alarm_share = false_alarms(windows.d_ot_W, windows.groups_W)
    return Report(
        study="probing",
        title="Probing: token loss and the near future (section 2.1)",
        summary=_summary(windows, config, false_alarm_share, quartile),
        tables=tables,
        plots=[
            divergence_plot(
                {
                    name: windows.d_ot_W[windows.in_group(group)]
                    for group, name in GROUP_NAMES.items()
                },
                window=config.probe.window,
            ),
            histogram_plot(
                windows.d_ot_W[high_W],
                kinds.part(high_W),
                quartile=quartile,
                false_alarms=false_alarm_share,
            ),
            scatter_plot(
                windows.losses_W[high_W],
                windows.d_ot_W[high_W],
                bins=bins,
                loss_name=config.candidates.loss,
            ),
        ],
        numbers={
            "num_windows": len(windows.d_ot_W),
            "num_unsolved": windows.num_unsolved,
            "num_prompts": len(set(windows.prompts)),
            "num_rollouts": len(set(windows.rollouts)),
            "low_loss_upper_quartile": quartile,
        },
    )


def _groups_table(windows: ProbedWindows, seed: int, resamples: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for group, name in GROUP_NAMES.items():
        mine_W = windows.in_group(group)
        d_ot_W = windows.d_ot_W[mine_W]
        names = windows.prompts_in_group(group)
        of_group = partial(bootstrap, seed=seed, resamples=resamples, clusters=names)
        # np.quantile refuses an empty group.
        quartiles: list[float] = [math.nan, math.nan]
        if len(d_ot_W):
            quartiles = np.quantile(d_ot_W, [0.25, 0.75]).tolist()
        rows.append(
            (
                name,
                len(d_ot_W),
                mean(windows.losses_W[mine_W]),
                of_group(median, d_ot_W),
                PAPER_MEDIANS[group],
                of_group(mean, d_ot_W),
                *quartiles,
                mean(d_ot_W == 0),
            )
        )
    return Table(
        name="groups",
        title="D_OT by group (figure 2)",
        columns=(
            "positions",
            "windows",
            "mean loss (nats)",
            "median D_OT",
            "paper's median",
            "mean D_OT",
            "lower quartile",
            "upper quartile",
            "share identical",
        ),
        rows=rows,
        note=(
            "95 % bootstrap intervals that draw whole prompts. Identical: the teacher"
            " says, token for token, what the student said. D_OT depends on the"
            " embedding table, so the paper's values and these are comparable in order"
            " and shape, not in size."
        ),
    )


def _relations_table(
    windows: ProbedWindows, estimate: Estimator, seed: int, resamples: int
) -> Table:
    high_W = windows.in_group(HIGH)
    names = windows.prompts_in_group(HIGH)
    of_high = partial(bootstrap, seed=seed, resamples=resamples, clusters=names)
    high = (windows.losses_W[high_W], windows.d_ot_W[high_W])
    everything = (windows.losses_W, windows.d_ot_W)
    return Table(
        name="relations",
        title="Token loss against D_OT (figure 6), and false alarms (figure 4)",
        columns=("quantity", "value", "paper"),
        rows=[
            ("Pearson r, high-loss positions", of_high(pearson, *high), PAPER_PEARSON),
            (
                "Spearman rho, high-loss positions",
                of_high(spearman, *high),
                PAPER_SPEARMAN,
            ),
            ("Pearson r, all positions", estimate(pearson, *everything), None),
            ("Spearman rho, all positions", estimate(spearman, *everything), None),
            (
                "high-loss positions at or below the low-loss upper quartile",
                # Both columns are resampled, so the quartile is uncertain too.
                estimate(false_alarms, windows.d_ot_W, windows.groups_W),
                PAPER_FALSE_ALARMS,
            ),
        ],
        note="The interval of the last row draws the line anew in every resample.",
    )


def _kinds_table(windows: ProbedWindows, kinds: Kinds, quartile: float) -> Table:
    high_W = windows.in_group(HIGH)
    rows = []
    for kind in kinds.names:
        is_kind_W = kinds.of_W == kind
        mine_W = high_W & is_kind_W
        rows.append(
            (
                kind,
                int(mine_W.sum()),
                share(is_kind_W[high_W]),
                share(is_kind_W[windows.in_group(RANDOM)]),
                median(windows.losses_W[mine_W]),
                median(windows.d_ot_W[mine_W]),
                share(windows.d_ot_W[mine_W] <= quartile),
                share(is_kind_W[high_W & (windows.d_ot_W <= quartile)]),
            )
        )
    return Table(
        name="kinds",
        title="High-loss positions by what the student says there",
        columns=(
            "student's token",
            "windows",
            "share of high-loss positions",
            "share of random positions",
            "median loss (nats)",
            "median D_OT",
            "false-alarm rate",
            "share of all false alarms",
        ),
        rows=rows,
        note=(
            "Kinds are those of `probing.kinds`. Wilson intervals, windows taken as"
            " independent."
        ),
    )


def _sensitivity_table(sensitivity: Sequence[tuple[str, ProbedWindows]]) -> Table:
    _, own = sensitivity[0]
    base = dict(zip(own.keys(), own.d_ot_W, strict=True))
    rows: list[tuple[Cell, ...]] = []
    for name, windows in sensitivity:
        high_W = windows.in_group(HIGH)
        rows.append(
            (
                name,
                *(
                    median(windows.d_ot_W[windows.in_group(group)])
                    for group in GROUP_NAMES
                ),
                false_alarms(windows.d_ot_W, windows.groups_W),
                pearson(windows.losses_W[high_W], windows.d_ot_W[high_W]),
                spearman(windows.losses_W[high_W], windows.d_ot_W[high_W]),
                _rank_agreement(windows, base),
                windows.num_unsolved,
            )
        )
    return Table(
        name="sensitivity",
        title="The same windows under other settings",
        columns=(
            "setting",
            "median, high loss",
            "median, random",
            "median, low loss",
            "false alarms",
            "Pearson r",
            "Spearman rho",
            "rank correlation with the run's D_OT",
            "unsolved",
        ),
        rows=rows,
        note=(
            "Correlations over high-loss positions. One setting changes at a time."
            " Another temperature decodes other teacher continuations; all other rows"
            " share theirs. Windows whose plan did not converge are left out, which are"
            " the harder ones: where there are many (small epsilon), medians are too"
            " low."
        ),
    )


def _windows_table(windows: ProbedWindows, kinds: Kinds) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            windows.prompts[row],
            windows.rollouts[row],
            int(windows.positions_W[row]),
            GROUP_NAMES[int(windows.groups_W[row])],
            float(windows.losses_W[row]),
            float(windows.d_ot_W[row]),
            int(windows.student_W[row]),
            int(windows.teacher_W[row]),
            str(kinds.of_W[row]),
        )
        for row in range(len(windows.d_ot_W))
    ]
    return Table(
        name="windows",
        title="Every window",
        columns=(
            "prompt",
            "rollout",
            "position",
            "group",
            "loss",
            "d_ot",
            "student_token",
            "teacher_token",
            "kind",
        ),
        rows=rows,
        shown=False,
    )


def _rank_agreement(
    windows: ProbedWindows, base: Mapping[tuple[str, int], float]
) -> float:
    """Return the rank correlation of D_OT with the run's own, over high-loss windows.

    Only windows that both settings solved can be compared; nan without any.
    """
    pairs = zip(windows.keys(), windows.d_ot_W, windows.in_group(HIGH), strict=True)
    kept = [(base[key], d_ot) for key, d_ot, high in pairs if high and key in base]
    return spearman(*zip(*kept, strict=True)) if kept else math.nan


def _summary(
    windows: ProbedWindows, config: Config, false_alarm_share: float, quartile: float
) -> list[str]:
    medians = [median(windows.d_ot_W[windows.in_group(group)]) for group in GROUP_NAMES]
    shown = ", ".join(f"{middle:.3f}" for middle in medians)
    ordered = medians[0] > medians[1] > medians[2]
    return [
        (
            f"{len(windows.d_ot_W)} windows of K = {config.probe.window} tokens in"
            f" {len(set(windows.rollouts))} rollouts of {len(set(windows.prompts))}"
            f" prompts; {windows.num_unsolved} more whose transport did not converge"
            f" are left out. The loss is `{config.candidates.loss}`, in nats; the"
            f" student's continuation is its `{config.probe.student}`, the teacher's is"
            f" decoded at temperature {config.probe.teacher_temperature:g}."
        ),
        (
            "Medians of D_OT fall from high-loss over random to low-loss positions:"
            f" {'yes, as in the paper' if ordered else 'no, unlike in the paper'}"
            f" ({shown}). {false_alarm_share:.1%} of"
            " the high-loss positions lie at or below the low-loss upper quartile of"
            f" {quartile:.3f} (paper: {PAPER_FALSE_ALARMS:.2%})."
        ),
    ]


__all__ = ["analyse"]
