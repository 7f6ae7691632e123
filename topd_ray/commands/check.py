"""`topd check`: print the plan of a run as tables."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from topd_ray.actors.placement import Placement, assumed_placement
from topd_ray.actors.roles import ROLES, RoleName
from topd_ray.actors.transport import transport_of
from topd_ray.config import Config
from topd_ray.inputs.gpu_memory import (
    GpuMemory,
    gpu_memory,
    refuse_too_little_memory,
)
from topd_ray.inputs.resources import Plan, make_plan
from topd_ray.inputs.run_inputs import check_inputs
from topd_ray.inputs.turns import host_gib, roles_by_turns


def check(config: Config) -> None:
    """Judge a config, and print what a run of it takes of which machine.

    Raises UserError for what is not sound, among it an actor that fits no node and a
    GPU with too little memory; the map of the GPUs is printed before.
    """
    notes = check_inputs(config)
    placement = assumed_placement(config)
    takes_turns = roles_by_turns(config, placement)
    gpus = gpu_memory(config, placement, takes_turns)
    console = Console()
    _print_roles(console, config, make_plan(config), placement, takes_turns)
    if gpus:
        _print_gpus(console, config, placement, gpus)
    refuse_too_little_memory(config, gpus)
    _print_notes(console, config, [*notes, *_gpu_notes(config, gpus)])


def _print_roles(
    console: Console,
    config: Config,
    plan: Plan,
    placement: Placement,
    takes_turns: frozenset[RoleName],
) -> None:
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
            "see map" if role.gpus else gib,
            role.what,
        )
    table.add_section()
    actors = sum(role.count for role in plan.roles)
    table.add_row(
        "in all", str(actors), f"{plan.cpus:g}", str(placement.num_gpus), "", ""
    )
    console.print(table)
    console.print(
        f"a step: {plan.rollouts_a_step:,} rollouts, at most"
        f" {plan.student_tokens_a_step:,} tokens decoded by the student and"
        f" {plan.teacher_tokens_a_step:,} by the teacher; longest sequence"
        f" {config.teacher_context_tokens:,}"
    )
    transport = "store" if takes_turns else transport_of(config, placement)
    console.print(f"weights travel by {transport}")
    if takes_turns:
        roles = ", ".join(role for role in ROLES if role in takes_turns)
        console.print(f"by turns: {roles}; one works while the others sleep")


def _print_gpus(
    console: Console, config: Config, placement: Placement, gpus: Sequence[GpuMemory]
) -> None:
    """Print what each GPU holds, actor by actor, and what is left of it."""
    size = f"{_counted(len(gpus), 'GPU')} on {_counted(len(placement.nodes), 'node')}"
    table = Table(
        title=(
            f"{size} of"
            f" {config.cluster.gpus_per_node} (layout {config.cluster.layout}); GiB,"
            " estimated"
        )
    )
    table.add_column("GPU")
    table.add_column("actor")
    table.add_column("GiB", justify="right")
    table.add_column("holds")
    for gpu in gpus:
        name = f"node {gpu.node} GPU {gpu.gpu}"
        for actor in gpu.actors:
            held = _terms(actor.parts)
            if actor.role in gpu.takes_turns:
                held += f" (asleep {actor.asleep_gib:.1f})"
            table.add_row(name, actor.actor, _gib(actor.gib), held)
            name = ""
        for role, gib in gpu.turns.items() if gpu.takes_turns else ():
            table.add_row("", f"turn of {role}", _gib(gib), "")
        what = "most" if gpu.takes_turns else "sum"
        table.add_row("", what, _gib(gpu.gib), _left(gpu))
        table.add_section()
    console.print(table)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _gib(gib: float | None) -> str:
    return "?" if gib is None else f"{gib:.1f}"


def _terms(parts: dict[str, float] | None) -> str:
    if parts is None:
        return "the model's size is not known"
    return " + ".join(f"{what} {gib:.1f}" for what, gib in parts.items())


def _left(gpu: GpuMemory) -> str:
    if gpu.margin_gib is None:
        return ""
    colour = "red" if gpu.margin_gib < 0 else "green"
    margin = f"[{colour}]{gpu.margin_gib:.1f} left[/{colour}]"
    return f"of {gpu.card_gib:g}: {margin}"


def _gpu_notes(config: Config, gpus: Sequence[GpuMemory]) -> list[str]:
    return [
        *(
            f"what sleeps on node {node} is up to {gib:.0f} GiB of its host memory"
            for node, gib in host_gib(gpus).items()
        ),
        *_unknown_sizes(config, gpus),
    ]


def _unknown_sizes(config: Config, gpus: Sequence[GpuMemory]) -> list[str]:
    if gpus and config.cluster.gpu_memory_gib is None:
        return [
            "cluster.gpu_memory_gib is not set, so the sums were compared with no card"
        ]
    if any(gpu.gib is None for gpu in gpus):
        return [
            "a model is neither here nor of known size, so the sums were compared with"
            " no card; set learner.size_b and teacher.size_b"
        ]
    return []


def _print_notes(console: Console, config: Config, notes: Sequence[str]) -> None:
    # No markup: a path may hold brackets.
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    console.print(
        f"{config.run.name}: the config is sound", style="green", markup=False
    )
