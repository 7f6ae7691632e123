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
"""Kinds of actor, in the order in which a prompt passes them."""
_WORTHWHILE = 0.99
"""More GPUs must bring a step below this share of its time with fewer.

The search tries a limited number of placements, so a smaller gain is noise.
"""


def plan(config: Config, *, gpus: str | None, run: Path | None, weak: bool) -> None:
    """Print a prediction for each number of GPUs. Raises UserError without rates."""
    cores = os.cpu_count() or 1
    rates_of, workload, source = _rates(config, run, cores)
    numbers = _numbers(gpus) if gpus else []
    if numbers and not num_gpus(config):
        raise UserError(
            f"--gpus {gpus}: this config asks for no GPU; leave the option out"
        )
    if numbers:
        rows = scaled(config, rates_of, workload, numbers, weak=weak)
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
    """Return the best placement found for each number of GPUs.

    With `weak` the prompts of a step grow with the GPUs. Otherwise a step never takes
    longer with more GPUs: where the search finds no faster placement, the additional
    GPUs stay idle.
    """
    rows: list[Placed] = []
    for number in gpus:
        scaled_config = grown(config, number / gpus[0]) if weak else config
        best = best_placement(scaled_config, rates_of, workload, gpus=number)
        # With `weak` the steps have different prompts, so their times are no
        # comparison.
        if rows and not weak:
            limit_s = _WORTHWHILE * rows[-1].prediction.step_s
            if best.prediction.step_s > limit_s:
                best = with_idle(rows[-1], number)
        rows.append(best)
    return rows


def with_idle(smaller: Placed, gpus: int) -> Placed:
    """Return the placement of fewer GPUs with the additional ones idle."""
    idle = round(gpus - smaller.gpus) + smaller.num_idle
    return replace(smaller, gpus=gpus, num_idle=idle)


def grown(config: Config, times: float) -> Config:
    """Return the config with `times` as many prompts a step, at least one."""
    per_step = max(1, round(config.prompts.per_step * times))
    prompts = config.prompts.model_copy(update={"per_step": per_step})
    return config.model_copy(update={"prompts": prompts})


def _rates(
    config: Config, run: Path | None, cores: int
) -> tuple[RatesOf, Workload, str]:
    if run is not None:
        # A trace does not say how long prompts were; half of their limit is assumed, as
        # in `assumed_workload`.
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
