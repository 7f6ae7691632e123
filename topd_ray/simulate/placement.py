"""Which share of the GPUs each role gets: simulate, move GPUs to the busiest role while
it helps.

Two families are tried, and the better one kept: every actor has a whole GPU; or
each learner rank shares its GPU with a rollout engine. A teacher (and, where probe
workers have engines, one such worker with it) has whole GPUs. Chunks are
as large as the number of ranks, as far as an engine's rollouts go, since a chunk is
dealt out over the ranks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from topd_ray.config import Config
from topd_ray.errors import UserError
from topd_ray.simulate.rates import Rates, Workload
from topd_ray.simulate.simulation import Prediction, num_gpus, simulate

RatesOf = Callable[[Config], Rates]
# Enough to rank two placements; the best of each family runs eight steps at the end.
_SEARCH_STEPS = 2
_FINENESS = 64
_CORES_A_GPU = 12
_ROLLOUT_SHARE = 0.35
"""Of a GPU that a learner rank shares with a rollout engine, as in the paper's config
here.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSplit:
    """GPUs by role."""

    rollouts: int
    teachers: int
    ranks: int
    colocated: bool = False
    """Learner ranks and rollout engines share GPUs, one of each."""

    def __str__(self) -> str:
        if self.colocated:
            return f"{self.ranks} rollout + learner, {self.teachers} teacher"
        return f"{self.rollouts} rollout, {self.teachers} teacher, {self.ranks} learner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A placement and what it would do."""

    gpus: float
    placement: str
    config: Config
    prediction: Prediction
    num_idle: int = 0
    """GPUs for which nothing was found to do."""

    @property
    def described(self) -> str:
        """Return the split as text for a table."""
        return self.placement + (f", {self.num_idle} idle" if self.num_idle else "")


def as_configured(
    config: Config, rates_of: RatesOf, workload: Workload, *, cores: int
) -> Placed:
    """Return the config's own counts."""
    prediction = simulate(config, rates_of(config), workload, cores=cores)
    return Placed(
        gpus=num_gpus(config),
        placement="as configured",
        config=config,
        prediction=prediction,
    )


def best_placement(
    config: Config, rates_of: RatesOf, workload: Workload, *, gpus: int
) -> Placed:
    """Return the best split found of so many GPUs.

    Raises UserError where they are too few.
    """
    whole = _gpus_a_teacher(config)
    # A quarter of the GPUs to the teachers is where the search starts.
    teachers = max(1, gpus // (4 * whole))
    others = gpus - teachers * whole
    splits = [
        GpuSplit(rollouts=others, teachers=teachers, ranks=others, colocated=True),
        GpuSplit(rollouts=others - gpus // 4, teachers=teachers, ranks=gpus // 4),
    ]
    started = [
        split
        for split in splits
        if min(split.rollouts, split.teachers, split.ranks) > 0
    ]
    if not started:
        raise UserError(
            f"--gpus {gpus}: too few for a teacher of {whole} GPUs beside rollout and"
            f" learner; at least {whole + 1}"
        )

    def tried(split: GpuSplit, steps: int) -> Placed:
        placed = _with_split(config, split)
        cores = _CORES_A_GPU * gpus
        prediction = simulate(
            placed, rates_of(placed), workload, cores=cores, steps=steps
        )
        return Placed(
            gpus=gpus, placement=str(split), config=placed, prediction=prediction
        )

    found = [_improved(split, whole, gpus, tried) for split in started]
    return min(
        (tried(split, 8) for split in found),
        key=lambda placed: placed.prediction.step_s,
    )


def _improved(
    split: GpuSplit, whole: int, gpus: int, tried: Callable[[GpuSplit, int], Placed]
) -> GpuSplit:
    """Move GPUs between roles while a step gets shorter, fewer and fewer at a time.

    To a sixty-fourth of them: a finer split moves a step by less than the rates are
    known.
    """
    best = split
    best_s = tried(split, _SEARCH_STEPS).prediction.step_s
    amount = max(1, gpus // 8)
    while amount >= max(1, gpus // _FINENESS):
        for moved in _neighbours(best, whole, amount):
            seconds = tried(moved, _SEARCH_STEPS).prediction.step_s
            if seconds < best_s:
                best = moved
                best_s = seconds
                break
        else:
            amount //= 2
    return best


def _neighbours(split: GpuSplit, whole: int, amount: int) -> list[GpuSplit]:
    """Yield splits with `amount` GPUs more in one role and fewer in another."""
    moves = []
    for teachers in (amount, -amount):
        if split.colocated:
            moves.append((-teachers * whole, teachers, -teachers * whole))
        else:
            moves += [
                (-teachers * whole, teachers, 0),
                (0, teachers, -teachers * whole),
            ]
    if not split.colocated:
        moves += [(amount, 0, -amount), (-amount, 0, amount)]
    found = [
        replace(
            split,
            rollouts=split.rollouts + r,
            teachers=split.teachers + t,
            ranks=split.ranks + k,
        )
        for r, t, k in moves
    ]
    return [
        split for split in found if min(split.rollouts, split.teachers, split.ranks) > 0
    ]


def _gpus_a_teacher(config: Config) -> int:
    return round(
        config.teacher.engine.gpus
        + (config.probe_engine.gpus if config.probe_engine else 0)
    )


def _with_split(config: Config, split: GpuSplit) -> Config:
    share = _ROLLOUT_SHARE if split.colocated else 1.0
    rollouts = config.prompts.per_step * config.rollout.samples_per_prompt
    # Rollouts of one engine; a larger chunk would never be full.
    an_engine = -(-rollouts // split.rollouts)
    engine = config.rollout.engine.model_copy(
        update={"gpus": share, "tensor_parallel": 1}
    )
    parts = {
        "rollout": config.rollout.model_copy(
            update={
                "num_engines": split.rollouts,
                "engine": engine,
                "chunk_size": min(
                    max(config.rollout.chunk_size, split.ranks), an_engine
                ),
            }
        ),
        "teacher": config.teacher.model_copy(update={"num_engines": split.teachers}),
        "probe": config.probe.model_copy(update={"num_workers": split.teachers}),
        "learner": config.learner.model_copy(
            update={
                "num_ranks": split.ranks,
                # as many of the ranks as make whole groups
                "sequence_parallel": math.gcd(
                    split.ranks, config.learner.sequence_parallel
                ),
                "gpus": 1 - share if split.colocated else 1.0,
            }
        ),
        "cluster": config.cluster.model_copy(
            update={
                "layout": "manual",
                # Splits are of GPUs that hold what is on them together.
                "turns": False,
                # Two chunks an engine: with fewer, engines would wait for each other's
                # chunks.
                "max_chunks_in_flight": max(
                    config.cluster.max_chunks_in_flight, 2 * split.rollouts
                ),
            }
        ),
    }
    return config.model_copy(update=parts)
