"""What does not go with roles that take turns on the GPUs that they share."""

from collections.abc import Iterator

from topd_ray.config.operation import ClusterConfig
from topd_ray.config.rules import Rule
from topd_ray.config.stages import (
    LearnerConfig,
    ProbeConfig,
    RolloutConfig,
    TakeoverConfig,
)
from topd_ray.config.weights import WeightsConfig


def turn_rules(
    why: str,
    *,
    cluster: ClusterConfig,
    rollout: RolloutConfig,
    probe: ProbeConfig,
    takeover: TakeoverConfig,
    learner: LearnerConfig,
    weights: WeightsConfig,
) -> Iterator[Rule]:
    """Yield the rules of a run whose roles take turns; `why` begins each message."""
    yield (
        cluster.layout == "disaggregated",
        (
            f"{why} with cluster.layout=disaggregated: no role shares a GPU with"
            " another; drop one"
        ),
    )
    yield (
        takeover.stride is not None,
        (
            f"{why} with takeover.stride={takeover.stride}: the teacher would read"
            " while the engines decode, and one of them sleeps; drop takeover.stride"
        ),
    )
    yield (
        probe.student == "resample",
        (
            f"{why} with probe.student=resample: the engines would decode fresh windows"
            " while they sleep; set probe.student=rollout"
        ),
    )
    yield (
        rollout.max_staleness > 0,
        (
            f"{why} with rollout.max_staleness={rollout.max_staleness}: the engines"
            " would decode while the learner trains, and one of them sleeps; set it to"
            " 0"
        ),
    )
    yield (
        learner.running_zero_stage == 0,
        (
            f"{why} with learner.zero_stage=0: DeepSpeed moves its states to the host"
            " with ZeRO 1, 2 and 3 alone; set learner.zero_stage=2"
        ),
    )
    yield (
        weights.transport not in ("auto", "store"),
        (
            f"{why} with weights.transport={weights.transport}: learner and engines"
            " would have to be awake together; set it to auto or store"
        ),
    )


__all__ = ["turn_rules"]
