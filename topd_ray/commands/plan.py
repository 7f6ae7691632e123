"""`topd plan`: predictions for one or more numbers of GPUs, as a table."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from topd_ray.config import Config
from topd_ray.errors import UserError
from topd_ray.simulate.fit import fit_run
from topd_ray.simulate.placement import (
    Placed,
    RatesOf,
    as_configured,
    best_placement,
)
from topd_ray.simulate.rates import Workload
from topd_ray.simulate.roofline import Hardware, assumed_workload, roofline_rates
from topd_ray.simulate.simulation import num_gpus

_KINDS = ("rollout", "teacher", "prober", "learner")
"""Columns, in the order of the flow."""
_WORTH = 0.99
"""Of a step's time: less of a gain is none."""


def plan(config: Config, *, gpus: str | None, run: Path | None, weak: bool) -> None:
    """Print a row a number of GPUs. Raises UserError where no rates are to be had."""
    cores = os.cpu_count() or 1
    rates_of, workload, source = _rates(config, run, cores)
    wanted = _numbers(gpus) if gpus else []
    if wanted and not num_gpus(config):
        raise UserError(
            f"--gpus {gpus}: this config asks for no GPU; leave the option out"
        )
    if wanted:
        rows = scaled(config, rates_of, workload, wanted, weak=weak)
    else:
        rows = [as_configured(config, rates_of, workload, cores=cores)]
    _print(config, rows, source)


def scaled(
    config: Config,
    rates_of: RatesOf,
    workload: Workload,
    gpus: Sequence[int],
    *,
    weak: bool,
) -> list[Placed]:
    """The best placement found for each number.

    `weak`: as many more prompts a step as there are GPUs. Otherwise more GPUs never
    take longer: where the search finds nothing faster than fewer of them, the others
    stay idle.
    """
    rows: list[Placed] = []
    for number in gpus:
        wanted = grown(config, number / gpus[0]) if weak else config
        found = best_placement(wanted, rates_of, workload, gpus=number)
        if (
            rows
            and not weak
            and _WORTH * rows[-1].prediction.step_s < found.prediction.step_s
        ):
            found = with_idle(rows[-1], number)
        rows.append(found)
    return rows


def with_idle(smaller: Placed, gpus: int) -> Placed:
    """The placement of a smaller number, where nothing was found for the GPUs beyond
    it.
    """
    idle = round(gpus - smaller.gpus) + smaller.num_idle
    return replace(smaller, gpus=gpus, num_idle=idle)


def grown(config: Config, times: float) -> Config:
    """So many times the prompts a step."""
    per_step = max(1, round(config.prompts.per_step * times))
    prompts = config.prompts.model_copy(update={"per_step": per_step})
    return config.model_copy(update={"prompts": prompts})


def _rates(
    config: Config, run: Path | None, cores: int
) -> tuple[RatesOf, Workload, str]:
    if run is not None:
        fitted = fit_run(run, cores=cores, prompt_tokens=config.prompts.max_tokens // 2)
        return lambda _: fitted.rates, fitted.workload, f"rates of {run}, {cores} cores"
    hardware = Hardware()
    return (
        lambda placed: roofline_rates(placed, hardware),
        assumed_workload(config),
        f"roofline of {hardware.name}: a prediction, nothing measured",
    )


def _numbers(gpus: str) -> list[int]:
    try:
        return [int(number) for number in gpus.split(",")]
    except ValueError:
        raise UserError(f"--gpus {gpus}: expected whole numbers, e.g. 4,8,16") from None


def _print(config: Config, rows: Sequence[Placed], source: str) -> None:
    table = Table(title=f"{config.run.name}: {config.run.method}", caption=source)
    for column in ("GPUs", "prompts", "placement", "step s", "tokens/s"):
        table.add_column(column, justify="left" if column == "placement" else "right")
    table.add_column("busy %: " + ", ".join(_KINDS), justify="right")
    table.add_column("bottleneck")
    for row in rows:
        predicted = row.prediction
        table.add_row(
            f"{row.gpus:g}",
            str(row.config.prompts.per_step),
            row.described,
            f"{predicted.step_s:,.3g}",
            f"{predicted.tokens_per_s:,.0f}",
            "  ".join(
                f"{100 * predicted.busy[k]:.0f}" for k in _KINDS if k in predicted.busy
            ),
            predicted.bottleneck,
        )
    Console().print(table)
