"""Help for an actor that was killed for memory: the estimate, and the fields."""

from topd_ray.config import Config
from topd_ray.inputs.resources import memory_line

_ROLES = {"prober": "probe"}
"""Names of roles in the plan, where they differ from the kind of actor."""
_FIELDS = {
    "rollout": "rollout.engine.kv_cache_gib, rollout.engine.max_num_seqs",
    "teacher": "teacher.engine.kv_cache_gib, teacher.engine.max_num_seqs",
    "prober": "probe.num_workers, the engine section of probe.engine",
    "learner": (
        "windows.token_budget, learner.gradient_checkpointing, learner.zero_stage with"
        " more ranks"
    ),
}


def memory_hint(config: Config, actor: str) -> str:
    """Return what `topd check` estimates for an actor, and which fields lower it.

    `actor` is its name, e.g. `learner[0]`. The text continues an error message.
    """
    kind = actor.partition("[")[0]
    line = memory_line(config, _ROLES.get(kind, kind))
    estimate = f"; {line}" if line else ""
    fields = _FIELDS.get(kind, "cluster.object_store_gib")
    return (
        f"{estimate}; lower {fields}, or cluster.object_store_gib, or run on a machine"
        " with more memory"
    )
