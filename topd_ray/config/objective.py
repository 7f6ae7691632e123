"""The objective, composed from parts; a method is a name for a set of parts.

| method | trajectory | the teacher sees       | divergence  | beside it            |
|--------|------------|------------------------|-------------|----------------------|
| kd     | given      | the prompt             | forward KL  | cross entropy        |
| opd    | rollout    | the prompt             | reverse KL  | token weights        |
| topd   | rollout    | the prompt             | reverse KL  | lambda L_traj        |
| opsd   | rollout    | + reference solution   | JSD         | teacher = student    |
| trd    | rewrite    | + the student's attempt| forward KL  | filter by outcome    |
| takeover | takeover | the prompt             | reverse and | filter by outcome    |
|        |            |                        | forward KL  |                      |
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from topd_ray.config.base import Section

Method = Literal["topd", "opd", "kd", "opsd", "trd", "takeover"]
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
    # D9: 0.1 is the best of the sweep in configs/studies/toy-lambda.yaml.
    "topd": {"objective": {"divergence": "reverse_kl", "lambda_traj": 0.1}},
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
    "takeover": {
        "objective": {
            "trajectory": "takeover",
            "divergence": "reverse_kl",
            "mix": True,
        },
    },
}


class ObjectiveConfig(Section):
    """Which loss is minimised, on whose responses, against which teacher."""

    trajectory: Literal["rollout", "given", "rewrite", "takeover"] = "rollout"
    """Whose responses are learned from. `rollout`: the student's samples. `given`: the
    responses of the data (`topd generate` writes those of the teacher). `rewrite`: the
    teacher's rewrite of each rollout (TRD). `takeover`: the student's samples up to
    their fork, and the teacher's continuation from there.
    """
    context: Context = "plain"
    """What the teacher's prompt holds. `plain`: the student's prompt alone.
    `reference`: also the reference solution of the data. `refine`: also the student's
    attempt. `refine_reference`: also both.
    """
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    """Loss of each token. `reverse_kl`: KL(student || teacher). `forward_kl`:
    KL(teacher || student). `jsd`: Jensen-Shannon, between both (GKD).
    """
    mix: bool = False
    """With `trajectory: takeover`. true: reverse and forward KL at every token. false:
    reverse KL on the student's own tokens, forward KL on the teacher's, both at the
    fork.
    """
    jsd_beta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Weight of the teacher in the mixture of `jsd`; 0 is forward KL, 1 reverse KL."""
    token_clip: PositiveFloat | None = None
    """Nats at which a token's divergence is cut off; a token above has no gradient."""
    forward_above_entropy: PositiveFloat | None = None
    """Entropy-aware OPD: forward KL is added where the teacher's entropy exceeds this
    many nats; none: nowhere.
    """
    kd_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Weight of the divergence beside the cross entropy of the given response (1 -
    kd_ratio).
    """
    lambda_traj: NonNegativeFloat = 0.0
    """D9. lambda: weight of L_traj beside the token loss; 0 turns L_traj off."""
    downweight: Literal["none", "low_ot", "matched_high_ot"] = "none"
    """Cap the loss of some high-loss tokens at the median token loss of their rollout
    (paper, table 2). `low_ot`: those whose D_OT is at or below the threshold of D7.
    `matched_high_ot`: as many, drawn from those above it.
    """
    select: Literal["all", "entropy_divergence"] = "all"
    """Which tokens train. `entropy_divergence`: those with the highest product of
    student entropy and token loss.
    """
    select_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of a rollout's tokens that `entropy_divergence` keeps."""


def merged_with_method(values: Any) -> Any:
    """Return raw config values with what `run.method` implies for fields left open.

    Values of the wrong shape pass unchanged: validation comes next and names them.
    """
    if not isinstance(values, Mapping):
        return values
    run = values.get("run")
    method = run.get("method", "topd") if isinstance(run, Mapping) else "topd"
    implied = METHODS.get(method, {}) if isinstance(method, str) else {}
    merged = dict(values)
    for section, parts in implied.items():
        # What the user wrote wins, part by part; the method fills what is left open.
        given = merged.get(section)
        if given is None or isinstance(given, Mapping):
            merged[section] = parts | dict(given or {})
    return merged
