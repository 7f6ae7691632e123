"""Placement -> the transport of weights, and the ranks of its group."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from topd_ray.config import Transport, WeightsConfig
from topd_ray.errors import UserError

BUFFER_BYTES = 2**30
"""Weights are packed up to this size; a broadcast takes two such buffers at each end.
"""
Gpus = frozenset[str]
"""GPUs by names that tell apart those of different nodes, such as `node1:0`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlacement:
    """The GPUs of each rollout engine and of each learner rank; no GPU on a CPU.

    Example: GpuPlacement(engines=({"a:0", "a:1"},), ranks=({"a:0"}, {"a:1"})) is an
    engine over two GPUs, each of which holds a learner rank as well.
    """

    engines: tuple[Gpus, ...]
    ranks: tuple[Gpus, ...]


def choose_transport(
    weights: WeightsConfig, placement: GpuPlacement, *, max_staleness: int
) -> Transport:
    """Return the transport of a run.

    Raises UserError where the config asks for one that the placement cannot do.
    """
    wanted = weights.transport
    if wanted == "auto":
        return _best(placement, max_staleness)
    obstacle = _obstacle(wanted, placement)
    if obstacle is not None:
        raise UserError(
            f"weights.transport={wanted}: {obstacle}; set it to auto, or place the"
            " rollout engines and the learner otherwise"
        )
    return wanted


def _best(placement: GpuPlacement, max_staleness: int) -> Transport:
    # With steps begun ahead an engine loads a version long after the learner has it.
    if max_staleness > 0:
        return "store"
    direct: tuple[Transport, ...] = ("ipc", "nccl")
    for transport in direct:
        if _obstacle(transport, placement) is None:
            return transport
    return "store"


def _obstacle(transport: Transport, placement: GpuPlacement) -> str | None:
    """Return why the placement cannot do it; None where it can."""
    if transport == "store":
        return None
    if transport == "gloo":
        return _gpu_found(placement)
    return (
        _gpu_missing(placement)
        or (_rank_missing(placement) if transport == "ipc" else None)
        or (_gpu_shared(placement) if transport == "nccl" else None)
    )


def _named(placement: GpuPlacement) -> list[tuple[str, Gpus]]:
    engines = [(f"rollout[{i}]", gpus) for i, gpus in enumerate(placement.engines)]
    ranks = [(f"learner[{i}]", gpus) for i, gpus in enumerate(placement.ranks)]
    return engines + ranks


def _gpu_found(placement: GpuPlacement) -> str | None:
    for name, gpus in _named(placement):
        if gpus:
            return f"{name} is on a GPU, and gloo connects CPUs"
    return None


def _gpu_missing(placement: GpuPlacement) -> str | None:
    for name, gpus in _named(placement):
        if not gpus:
            return f"{name} has no GPU"
    return None


def _rank_missing(placement: GpuPlacement) -> str | None:
    of_ranks = frozenset[str]().union(*placement.ranks)
    for index, gpus in enumerate(placement.engines):
        alone = sorted(gpus - of_ranks)
        if alone:
            return f"GPU {alone[0]} of rollout[{index}] holds no learner rank"
    return None


def _gpu_shared(placement: GpuPlacement) -> str | None:
    """NCCL connects learner rank 0 and the engines, and takes a GPU once."""
    members = [
        (name, gpus)
        for name, gpus in _named(placement)
        if name.startswith("rollout") or name == "learner[0]"
    ]
    for (one, gpus), (other, others) in combinations(members, 2):
        if gpus & others:
            shared = sorted(gpus & others)[0]
            return f"{one} and {other} share GPU {shared}, which NCCL takes once"
    return None


def rank_offsets(workers: Sequence[int]) -> list[int]:
    """Return the rank of each engine's first worker in the group of a broadcast.

    Rank 0 is the learner's. `workers`: the number of worker processes of each engine,
    which is its tensor parallel size. vLLM's client would give all engines the same
    offset, and the group would never be complete.
    """
    return [1 + sum(workers[:index]) for index in range(len(workers))]


__all__ = ["BUFFER_BYTES", "GpuPlacement", "Gpus", "choose_transport", "rank_offsets"]
