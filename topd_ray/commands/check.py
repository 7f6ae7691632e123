"""`topd check`: print the plan of a run as a table."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from topd_ray.actors.transport import transport_of
from topd_ray.config import Config
from topd_ray.inputs.resources import Plan


def print_plan(config: Config, plan: Plan, notes: Sequence[str]) -> None:
    """Print what each role takes, the sums, the tokens of a step, and the notes."""
    console = Console()
    table = Table(
        title=f"{config.run.name}: {config.run.method}, seed {config.run.seed}"
    )
    table.add_column("role")
    for column in ("actors", "CPUs each", "GPUs each", "GiB each"):
        table.add_column(column, justify="right")
    table.add_column("memory holds")
    for role in plan.roles:
        gib = "?" if role.gib is None else f"{role.gib:,.3g}"
        table.add_row(
            role.name,
            str(role.count),
            f"{role.cpus:g}",
            f"{role.gpus:g}",
            gib,
            role.what,
        )
    table.add_section()
    actors = sum(role.count for role in plan.roles)
    table.add_row("in all", str(actors), f"{plan.cpus:g}", f"{plan.gpus:g}", "", "")
    console.print(table)
    console.print(
        f"a step: {plan.rollouts_a_step:,} rollouts, at most"
        f" {plan.student_tokens_a_step:,} tokens decoded by the student and"
        f" {plan.teacher_tokens_a_step:,} by the teacher; longest sequence"
        f" {config.teacher_context_tokens:,}"
    )
    console.print(f"weights travel by {transport_of(config)}")
    # No markup: a path may hold brackets.
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    console.print(
        f"{config.run.name}: the config is sound", style="green", markup=False
    )
