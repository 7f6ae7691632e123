"""Which fields of a run's config may change when it is resumed, and why others may not.

A field may change where the steps before and after the change are still of one run: the
same loss on the same prompts, drawn from the same seeds. Every field that is not in
`CHANGEABLE` may not.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from topd_ray.config.schema import Config
from topd_ray.errors import UserError

_HARDWARE = (
    "cpus",
    "enforce_eager",
    "expert_parallel",
    "gpu_memory_utilization",
    "gpus",
    "kv_cache_gib",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "tensor_parallel",
)
_ENGINES = ("rollout.engine", "teacher.engine", "probe.engine")
_MOVED = "a file or folder that was moved; another content is refused (`--accept`)"
_PLACE = "where the run computes, and with how much memory"

CHANGEABLE: dict[str, str] = {
    "run.steps": "a longer run; the learning rate follows the new length from here on",
    "prompts.epochs": "as `run.steps`",
    "run.checkpoint_every": "what the run leaves behind",
    "run.keep_checkpoints": "what the run leaves behind",
    "run.keep_every": "what the run leaves behind",
    "run.trace": "what the run leaves behind",
    "records.*": "what the run leaves behind",
    "prompts.path": _MOVED,
    "prompts.forms": _MOVED,
    "evaluation.path": _MOVED,
    "learner.model": _MOVED,
    "teacher.model": _MOVED,
    "evaluation.every": "how often the student is measured",
    "health.*": "when a step cannot be trusted",
    "cluster.*": _PLACE,
    "weights.*": "how weights travel; the engines hold the same ones",
    "rollout.num_engines": _PLACE,
    "teacher.num_engines": _PLACE,
    "probe.num_workers": _PLACE,
    "probe.cpus": _PLACE,
    "windows.token_budget": _PLACE,
    "learner.num_ranks": _PLACE,
    "learner.sequence_parallel": _PLACE,
    "learner.zero_stage": _PLACE,
    "learner.gradient_checkpointing": _PLACE,
    "learner.cpus": _PLACE,
    "learner.gpus": _PLACE,
    "learner.size_b": "an estimate for `topd check`",
    "teacher.size_b": "an estimate for `topd check`",
} | {f"{engine}.{field}": _PLACE for engine in _ENGINES for field in _HARDWARE}
"""Field, or pattern of fields -> what it decides."""
REASONS: dict[str, str] = {
    "run.name": "it is the name of this folder",
    "run.root": "this folder lies there",
    "run.seed": "every draw of the run derives from it",
    "run": "it sets the objective",
    "objective": "it is what the run descends",
    "prompts": "it decides which prompts come, in which order and in which words",
    "rollout": "it decides how the student answers",
    "teacher": "it is what the student is taught",
    "candidates": "it decides which positions are probed",
    "probe": "it decides what is a divergence",
    "windows": "it decides what is a divergence",
    "rewrite": "it decides what the student is taught",
    "takeover": "it decides what the student is taught",
    "learner": "the optimizer's state is of this value",
    "evaluation": "accuracies before and after could not be compared",
}
"""Field or section -> why it may not change."""


class Change(NamedTuple):
    """One field that differs between two configs of a run."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field} {self.old!r} -> {self.new!r}"


def changes(old: Config, new: Config) -> list[Change]:
    """Return the fields whose values differ, in the order of the schema."""
    before = dict(_leaves(old.model_dump(mode="json")))
    after = dict(_leaves(new.model_dump(mode="json")))
    return [
        Change(field, before.get(field), after.get(field))
        for field in before | after
        if before.get(field) != after.get(field)
    ]


def may_change(field: str) -> bool:
    """Return whether a resumed run may have another value of a field."""
    return any(fnmatchcase(field, pattern) for pattern in CHANGEABLE)


def refuse_unchangeable(changed: list[Change], *, way_out: str) -> None:
    """Raise UserError with every change that a resumed run may not have, and why."""
    refused = [change for change in changed if not may_change(change.field)]
    if refused:
        listed = "; ".join(f"{change}: {_reason(change.field)}" for change in refused)
        raise UserError(f"a run in progress may not change {listed}; {way_out}")


def _reason(field: str) -> str:
    section = field.partition(".")[0]
    return REASONS.get(field) or REASONS.get(section) or "it is part of what the run is"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


__all__ = [
    "CHANGEABLE",
    "Change",
    "changes",
    "may_change",
    "refuse_unchangeable",
]
