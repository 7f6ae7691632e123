"""What is descended, composed from parts; a method is a name for a set of them.

| method | trajectory | the teacher sees       | divergence  | beside it            |
|--------|------------|------------------------|-------------|----------------------|
| kd     | given      | the prompt             | forward KL  | cross entropy        |
| opd    | rollout    | the prompt             | reverse KL  | token weights        |
| topd   | rollout    | the prompt             | reverse KL  | lambda L_traj        |
| opsd   | rollout    | + reference solution   | JSD         | teacher = student    |
| trd    | rewrite    | + the student's attempt| forward KL  | filter by outcome    |
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the rules between objective, teacher and the rest look at."""

    method: str
    objective: ObjectiveConfig
    samples_per_prompt: int
    teacher_source: str
    has_teacher_model: bool
    follow_every: int
    signal: str
    checkpoint_every: int
    candidate_loss: str
    divergence_rule: str
    resample: bool
    max_staleness: int

    @property
    def on_policy(self) -> bool:
        """The student learns from its own samples."""
        return self.objective.trajectory == "rollout"


Rule = tuple[bool, str]
"""Whether it is broken; the two fields that do not go together, and the way out."""


def refuse_nonsense(parts: Parts) -> None:
    """Raises ValueError for the first rule that is broken."""
    for broken, message in chain(
        _about_lambda(parts),
        _about_the_teacher(parts),
        _about_the_trajectory(parts),
        _about_the_signal(parts),
        _about_weights(parts),
        _about_staleness(parts),
    ):
        if broken:
            raise ValueError(message)


def _about_lambda(parts: Parts) -> Iterator[Rule]:
    weight = parts.objective.lambda_traj
    yield (
        parts.method == "opd" and weight > 0,
        (
            f"objective.lambda_traj={weight:g} with run.method=opd is topd; set"
            " run.method=topd, or lambda_traj=0"
        ),
    )
    yield (
        parts.method == "topd" and weight == 0,
        "objective.lambda_traj=0 with run.method=topd is opd; set run.method=opd",
    )


def _about_the_teacher(parts: Parts) -> Iterator[Rule]:
    own = parts.teacher_source == "student"
    yield (
        own and parts.has_teacher_model,
        (
            "teacher.model with teacher.source=student: the teacher is learner.model;"
            " drop one"
        ),
    )
    yield (
        not own and not parts.has_teacher_model,
        "teacher.model is missing; name its folder, or set teacher.source=student",
    )
    yield (
        own and parts.objective.context == "plain",
        (
            "teacher.source=student with objective.context=plain: the student would be"
            " its own teacher with nothing more to go by; set"
            " objective.context=reference"
        ),
    )
    yield (
        parts.follow_every > 0 and not own,
        f"teacher.follow_every={parts.follow_every} needs teacher.source=student",
    )
    yield (
        parts.follow_every > 0
        and parts.checkpoint_every % max(1, parts.follow_every) != 0,
        (
            f"run.checkpoint_every={parts.checkpoint_every} is no multiple of"
            f" teacher.follow_every={parts.follow_every}: a resumed run could not"
            " rebuild its teacher; make it one"
        ),
    )


def _about_the_trajectory(parts: Parts) -> Iterator[Rule]:
    objective = parts.objective
    given = objective.trajectory == "given"
    yield (
        (objective.trajectory == "rewrite") != objective.context.startswith("refine"),
        (
            f"objective.trajectory={objective.trajectory} with"
            f" objective.context={objective.context}: refine and refine_reference are"
            " for rewrites, and only they"
        ),
    )
    yield (
        (objective.lambda_traj > 0 or objective.downweight != "none")
        and not parts.on_policy,
        (
            "objective.lambda_traj / downweight with"
            f" objective.trajectory={objective.trajectory}: candidates are positions of"
            " the student's own rollouts; set trajectory=rollout"
        ),
    )
    yield (
        given and objective.context != "plain",
        (
            f"objective.trajectory=given with objective.context={objective.context}:"
            " given responses are scored under the prompt they answer; set"
            " context=plain"
        ),
    )
    yield (
        given and parts.samples_per_prompt != 1,
        (
            f"rollout.samples_per_prompt={parts.samples_per_prompt} with"
            " objective.trajectory=given: a prompt has the one response of the data;"
            " set it to 1"
        ),
    )
    yield (
        objective.kd_ratio < 1 and parts.on_policy,
        (
            f"objective.kd_ratio={objective.kd_ratio:g} with"
            " objective.trajectory=rollout: cross entropy on its own samples teaches"
            " the student nothing; set kd_ratio=1"
        ),
    )


def _about_the_signal(parts: Parts) -> Iterator[Rule]:
    objective, sampled = parts.objective, parts.signal == "sampled"
    reverse = objective.divergence == "reverse_kl"
    yield (
        sampled and not (parts.on_policy and reverse and objective.kd_ratio == 1),
        (
            "teacher.signal=sampled estimates the reverse KL of the student's own"
            " samples; set objective.trajectory=rollout and divergence=reverse_kl, or"
            " another signal"
        ),
    )
    yield (
        sampled and objective.token_clip is not None,
        (
            "objective.token_clip with teacher.signal=sampled: a sampled log ratio is"
            " no divergence to clip; drop it, or set another signal"
        ),
    )
    yield (
        parts.signal != "hidden" and objective.forward_above_entropy is not None,
        (
            f"objective.forward_above_entropy with teacher.signal={parts.signal}: the"
            " teacher's entropy needs the full vocabulary; set teacher.signal=hidden"
        ),
    )
    yield (
        objective.forward_above_entropy is not None and not reverse,
        (
            "objective.forward_above_entropy with"
            f" objective.divergence={objective.divergence}: it adds forward to reverse"
            " KL; set divergence=reverse_kl"
        ),
    )


def _about_weights(parts: Parts) -> Iterator[Rule]:
    objective = parts.objective
    caps, selects = objective.downweight != "none", objective.select != "all"
    yield (
        selects and not parts.on_policy,
        (
            f"objective.select={objective.select} with"
            f" objective.trajectory={objective.trajectory}: the student's entropy is"
            " known on its own rollouts only"
        ),
    )
    yield (
        caps and parts.divergence_rule != "quantile",
        (
            f"objective.downweight={objective.downweight} with"
            f" windows.divergence.rule={parts.divergence_rule}: table 2 takes the"
            " bottom quantile; set rule=quantile"
        ),
    )
    yield (
        (caps or selects) and parts.candidate_loss != "reverse_kl",
        (
            "objective.downweight / select with"
            f" candidates.loss={parts.candidate_loss}: they weigh by the token loss"
            " that is descended; set candidates.loss=reverse_kl"
        ),
    )
    yield (
        parts.resample and caps and objective.lambda_traj == 0,
        (
            "probe.student=resample with objective.downweight alone: fresh windows are"
            " only worth their price where they are trained on; set"
            " probe.student=rollout"
        ),
    )


def _about_staleness(parts: Parts) -> Iterator[Rule]:
    stale = parts.max_staleness
    yield (
        stale > 0 and parts.objective.trajectory == "given",
        (
            f"rollout.max_staleness={stale} with objective.trajectory=given: given"
            " responses are no policy's and cannot be stale; drop it"
        ),
    )
    yield (
        stale > 0 and parts.follow_every > 0,
        (
            f"rollout.max_staleness={stale} with"
            f" teacher.follow_every={parts.follow_every}: a step is scored before the"
            " one that moves the teacher ends; set one of them to 0"
        ),
    )
    yield (
        stale > 0 and parts.resample,
        (
            f"rollout.max_staleness={stale} with probe.student=resample: when fresh"
            " windows are asked for, the engine may hold newer weights than the"
            " rollout is of; set one of them back"
        ),
    )
