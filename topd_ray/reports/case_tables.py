"""Case -> Report: the table of every token, and when each method turns at the fork."""

from topd_ray.reports.case_figures import continuation_plot, fork_plot
from topd_ray.reports.case_text import as_written
from topd_ray.reports.case_types import METHODS, Case
from topd_ray.reports.report import Cell, Report, Table


def describe(case: Case, *, updates: int, lr: float, lambda_traj: float) -> Report:
    """Return the text, the table and the figures of a fork.

    `updates` and `lr` are those of each method, `lambda_traj` that of TOPD.
    """
    turned = {name: _first_agreement(case, name, updates) for name in METHODS.values()}
    return Report(
        study="case",
        title="One fork, token by token (figure 3)",
        summary=[
            (
                f"The probed window with the largest D_OT ({case.d_ot:.3f}, token loss"
                f" {case.loss:.2f} nats). Each row is the student's greedy continuation"
                f" from the same prefix: before, and after each of {updates}"
                f" updates on its own window at learning rate {lr:g}, by OPD"
                f" and, from the same start, by TOPD (lambda {lambda_traj:g})."
            ),
            (
                f"The teacher would go on with `{case.teacher[0]}`. The student says so"
                f" first: by OPD {turned['OPD']}, by TOPD {turned['TOPD']}."
            ),
        ],
        text=as_written(case),
        tables=[_token_table(case)],
        plots=[continuation_plot(case), fork_plot(case)],
        numbers={"case": case},
    )


def _first_agreement(case: Case, method: str, updates: int) -> str:
    """Say after which update the student's first token is the teacher's."""
    for state in case.states:
        if state.method == method and state.steps[0].token == case.teacher[0]:
            return f"after update {state.updates}"
    return f"never in {updates} updates"


def _token_table(case: Case) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for state in case.states:
        for index, step in enumerate(state.steps):
            for model, ranked in (("student", step.student), ("teacher", step.teacher)):
                place = (state.method, state.updates, index, model)
                for rank, (token, p) in enumerate(ranked, start=1):
                    rows.append((*place, rank, token, p, step.token))
    return Table(
        name="tokens",
        title="Every token",
        columns=(
            "method",
            "updates",
            "position",
            "model",
            "rank",
            "token",
            "p",
            "said",
        ),
        rows=rows,
        shown=False,
    )


__all__ = ["describe"]
