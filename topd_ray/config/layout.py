"""The section `cluster.layout`: what it sets of each actor's GPUs, and its rules."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from topd_ray.config.base import EngineConfig
from topd_ray.config.operation import ClusterConfig
from topd_ray.config.rules import Rule
from topd_ray.config.stages import LearnerConfig

_PLACED = ("disaggregated", "colocated")
"""Layouts that set the fields `gpus`."""


def merged_with_layout(values: Any) -> Any:
    """Return raw config values with the `gpus` that `cluster.layout` implies.

    A field that the user has set stays, and `layout_rules` judges it. Values of the
    wrong shape pass unchanged: validation comes next and names them.
    """
    if not isinstance(values, Mapping):
        return values
    cluster = values.get("cluster")
    if not isinstance(cluster, Mapping) or cluster.get("layout") not in _PLACED:
        return values
    learner = values.get("learner")
    if isinstance(learner, Mapping):
        learner = {"gpus": 1, **learner}
    return {
        **values,
        "rollout": _with_gpus(values.get("rollout", {}), engine={}),
        "teacher": _with_gpus(values.get("teacher", {}), engine={}),
        # A probe worker has no engine where its section names none.
        "probe": _with_gpus(values.get("probe", {}), engine=None),
        "learner": learner,
    }


def _with_gpus(section: Any, *, engine: Any) -> Any:
    """Return a section with the GPUs of its engine; `engine`: where it names none."""
    if not isinstance(section, Mapping):
        return section
    engine = section.get("engine", engine)
    if not isinstance(engine, Mapping):
        return section
    gpus = engine.get("tensor_parallel", 1)
    return {**section, "engine": {"gpus": gpus, **engine}}


def layout_rules(
    cluster: ClusterConfig,
    engines: Sequence[tuple[str, EngineConfig]],
    learner: LearnerConfig,
) -> Iterator[Rule]:
    """Yield the rules about the GPUs of each actor."""
    layout = cluster.layout
    yield (
        layout != "manual" and cluster.placement == "inline",
        (
            f"cluster.layout={layout} with cluster.placement=inline: all roles are in"
            " the driver's process, on no GPU; drop one"
        ),
    )
    for field, engine in engines:
        yield from _gpu_rules(layout, field, engine)
        yield from _cache_rules(layout, field, engine)
    yield (
        layout != "manual" and learner.gpus != 1,
        (
            f"learner.gpus={learner.gpus:g} with cluster.layout={layout}: that layout"
            " gives each rank a GPU; drop it, or set layout=manual"
        ),
    )


def _gpu_rules(layout: str, field: str, engine: EngineConfig) -> Iterator[Rule]:
    wanted = engine.tensor_parallel
    yield (
        (wanted > 1 or engine.gpus > 1) and engine.gpus != wanted,
        (
            f"{field}.gpus={engine.gpus:g} does not fit"
            f" {field}.tensor_parallel={wanted}; set gpus to {wanted}"
        ),
    )
    yield (
        layout != "manual" and engine.gpus != wanted,
        (
            f"{field}.gpus={engine.gpus:g} with cluster.layout={layout}: that layout"
            f" gives it {wanted} by its tensor_parallel; drop it, or set layout=manual"
        ),
    )


def _cache_rules(layout: str, field: str, engine: EngineConfig) -> Iterator[Rule]:
    shares = 0 < engine.gpus < 1 or layout == "colocated"
    yield (
        engine.backend == "vllm" and shares and engine.kv_cache_gib is None,
        (
            f"{field}.kv_cache_gib is missing, and the engine shares its GPU: vLLM"
            " would take what the other actors have not taken yet; set it in GiB"
        ),
    )
