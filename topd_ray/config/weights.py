"""The config section of new weights: how they travel to the engines."""

from collections.abc import Iterator
from typing import Literal

from pydantic import PositiveFloat

from topd_ray.config.base import Section
from topd_ray.config.stages import RolloutConfig

Transport = Literal["store", "nccl", "gloo", "ipc"]
"""A way for weights from the learner's memory to that of a rollout engine."""


class WeightsConfig(Section):
    """How a policy version travels from the learner to the rollout engines."""

    transport: Literal["auto"] | Transport = "auto"
    """`store`: copies in Ray's object store; always possible. `nccl`: a broadcast from
    the GPU of learner rank 0 to GPUs that are not its own. `ipc`: the engine reads
    memory of the learner rank on its own GPU. `gloo`: the broadcast of `nccl` between
    CPUs. `auto`: `store` without GPUs or with `rollout.max_staleness`; `ipc` where each
    GPU of a rollout engine holds a learner rank too; `nccl` where it is possible. An
    engine that replaces a lost one, and a teacher that follows, load from the store.
    """
    deadline_s: PositiveFloat = 120.0
    """Longest wait for one transfer by `nccl`, `gloo` or `ipc`, from the call to the
    last engine's answer. Then each engine that owes its answer counts as lost, and its
    successor loads the version from the store.
    """


def transport_rules(
    weights: WeightsConfig, rollout: RolloutConfig
) -> Iterator[tuple[bool, str]]:
    """Yield the rules of transports that no placement of GPUs could make possible."""
    chosen = f"weights.transport={weights.transport}"
    direct = weights.transport not in ("auto", "store")
    way_out = "set weights.transport to auto or store"
    yield (
        direct and rollout.engine.backend != "vllm",
        (
            f"{chosen} with rollout.engine.backend={rollout.engine.backend}: only vllm"
            f" takes weights in that way; {way_out}"
        ),
    )
    # The learner would wait for an engine that decodes steps ahead, whose rollouts wait
    # for the learner.
    yield (
        direct and rollout.max_staleness > 0,
        (
            f"{chosen} with rollout.max_staleness={rollout.max_staleness}: learner and"
            " engines would wait for each other, since the engines decode steps ahead;"
            f" {way_out}, or rollout.max_staleness to 0"
        ),
    )


__all__ = ["Transport", "WeightsConfig", "transport_rules"]
