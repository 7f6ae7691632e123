"""What is descended, composed from parts; a method is a name for a set of them.

| method | trajectory | the teacher sees       | divergence  | beside it            |
|--------|------------|------------------------|-------------|----------------------|
| kd     | given      | the prompt             | forward KL  | cross entropy        |
| opd    | rollout    | the prompt             | reverse KL  | token weights        |
| topd   | rollout    | the prompt             | reverse KL  | lambda L_traj        |
| opsd   | rollout    | + reference solution   | JSD         | teacher = student    |
| trd    | rewrite    | + the student's attempt| forward KL  | filter by outcome    |
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from topd_ray.config.base import Section

Method = Literal["topd", "opd", "kd", "opsd", "trd"]
Context = Literal["plain", "reference", "refine", "refine_reference"]

METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "kd": {
        "objective": {
            "trajectory": "given",
            "divergence": "forward_kl",
            "kd_ratio": 0.5,
        },
        "rollout": {"samples_per_prompt": 1},
    },
    "opd": {"objective": {"divergence": "reverse_kl"}},
    "topd": {
        "objective": {"divergence": "reverse_kl", "lambda_traj": 0.1}
    },  # D9: a sweep on dev
    "opsd": {
        "objective": {"context": "reference", "divergence": "jsd"},
        "teacher": {"source": "student"},
    },
    "trd": {
        "objective": {
            "trajectory": "rewrite",
            "context": "refine",
            "divergence": "forward_kl",
        },
    },
}


class ObjectiveConfig(Section):
    """Trajectory, teacher's context, divergence, and what is added or weighted."""

    trajectory: Literal["rollout", "given", "rewrite"] = "rollout"
    """`rollout`: the student's samples; `given`: the responses of the data (`topd
    generate` writes the teacher's); `rewrite`: the teacher's rewrite of each rollout
    (TRD).
    """
    context: Context = "plain"
    """What the teacher's prompt holds: the student's prompt alone, the reference
    solution of the data, the student's attempt (`refine`), or both.
    """
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    """Token by token: KL(student || teacher), KL(teacher || student), or between both
    (GKD).
    """
    jsd_beta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """beta of jsd: weight of the teacher in the mixture; 0 is forward KL, 1 reverse
    KL.
    """
    token_clip: PositiveFloat | None = None
    """Nats at which a token's divergence is cut off; above it, the token has no
    gradient.
    """
    forward_above_entropy: PositiveFloat | None = None
    """Entropy-aware OPD: forward KL is added where the teacher's entropy exceeds so
    many nats.
    """
    kd_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Weight of the divergence beside the cross entropy of the given response (1 -
    kd_ratio).
    """
    lambda_traj: NonNegativeFloat = 0.0
    """D9. lambda: weight of L_traj beside the token loss; 0: no soft targets."""
    downweight: Literal["none", "low_ot", "matched_high_ot"] = "none"
    """Cap, at its rollout's median token loss, the loss of the high-loss tokens at or
    below the D7 line, or of as many drawn from those above it (paper, table 2).
    """
    select: Literal["all", "entropy_divergence"] = "all"
    """`entropy_divergence`: only the tokens with the highest student entropy x token
    loss train.
    """
    select_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of a rollout's tokens that `entropy_divergence` keeps."""


def merged_with_method(values: Any) -> Any:
    """Raw config values with what `run.method` implies, wherever they say nothing
    themselves.
    """
    if not isinstance(values, Mapping):
        return values
    run = values.get("run")
    method = run.get("method", "topd") if isinstance(run, Mapping) else "topd"
    merged = dict(values)
    for section, parts in METHODS.get(
        method if isinstance(method, str) else "", {}
    ).items():
        own = merged.get(section)
        if own is None or isinstance(own, Mapping):
            merged[section] = parts | dict(own or {})
    return merged
