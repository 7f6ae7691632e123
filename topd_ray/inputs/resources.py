"""Config -> plan of a run: actors, CPUs, GPUs, memory of each role, tokens of a step.

Memory is arithmetic, see `estimates.py`.
"""

from dataclasses import dataclass

from topd_ray.config import Config, EngineConfig
from topd_ray.inputs.estimates import (
    ModelSizes,
    engine_gib,
    learner_gib,
    model_sizes,
    prober_gib,
    teacher_gib,
)

_ACTORS = {
    "rollout": "rollout engine",
    "teacher": "teacher engine",
    "probe": "probe worker",
    "learner": "learner rank",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """All actors of one kind.

    Example: Role(name="learner", count=2, cpus=1.0, gpus=0.65, gib=33.7, what="ZeRO 3,
    bfloat16: weights, gradients, optimizer").
    """

    name: str
    """`rollout`, `teacher`, `probe` or `learner`."""
    count: int
    """Number of actors."""
    cpus: float
    """Logical CPUs of one actor."""
    gpus: float
    """GPUs of one actor."""
    gib: float | None
    """Peak memory of one actor in GiB; None where the model's size is unknown."""
    what: str
    """What the memory holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Roles of a run, and the most tokens that one optimizer step can bring."""

    roles: list[Role]
    """In the order in which a rollout passes them."""
    rollouts_a_step: int
    student_tokens_a_step: int
    teacher_tokens_a_step: int
    """Tokens that the teacher decodes: windows, rewrites or takeovers."""

    @property
    def cpus(self) -> float:
        """Return the logical CPUs of all actors."""
        return sum(role.count * role.cpus for role in self.roles)

    @property
    def gpus(self) -> float:
        """Return the GPUs of all actors."""
        return sum(role.count * role.gpus for role in self.roles)


def make_plan(config: Config) -> Plan:
    """Return the plan of a config; reads model folders that are on this machine."""
    student, teacher = model_sizes(config)
    rollouts = config.prompts.per_step * config.rollout.samples_per_prompt
    tokens = rollouts * config.rollout.max_response_tokens
    roles = [
        _rollout_role(config, student),
        _engine_role(
            "teacher",
            config.teacher.num_engines,
            config.teacher.engine,
            None if teacher is None else teacher_gib(config, teacher),
        ),
        _learner_role(config, student, teacher),
    ]
    if config.num_probe_workers:
        # Behind the teacher, whose losses choose what is probed.
        roles.insert(2, _probe_role(config, teacher))
    return Plan(
        roles=roles,
        rollouts_a_step=rollouts,
        student_tokens_a_step=tokens,
        teacher_tokens_a_step=rollouts * _decoded_tokens(config),
    )


def _decoded_tokens(config: Config) -> int:
    """Return the most tokens that the teacher decodes for one rollout."""
    longest = config.rollout.max_response_tokens
    tokens = 0
    if config.uses_rewrites:
        tokens += config.rewrite.max_response_tokens or longest
    if config.uses_takeovers:
        tokens += min(config.takeover.tokens or longest, longest)
    if not config.uses_probes:
        return tokens
    if config.uses_takeovers:
        return tokens + config.takeover.candidates * config.probe.window
    # A rollout that ends early has fewer candidates.
    candidates = max(
        config.candidates.min_per_rollout, round(config.candidates.fraction * longest)
    )
    return tokens + candidates * config.probe.window


def memory_line(config: Config, role: str) -> str | None:
    """Return a line with the memory that `topd check` estimates for one actor.

    Args:
        config: the run's config.
        role: name of a `Role`.

    Returns:
        A line such as "topd check estimates 33.7 GiB for one learner rank: ZeRO 3,
        bfloat16: weights, gradients, optimizer"; None where the run has no such role,
        or where the size of its model is unknown.
    """
    for entry in make_plan(config).roles:
        if entry.name == role and entry.gib is not None:
            return (
                f"topd check estimates {entry.gib:,.3g} GiB for one"
                f" {_ACTORS[role]}: {entry.what}"
            )
    return None


def _engine_role(
    name: str, count: int, engine: EngineConfig, gib: float | None
) -> Role:
    held = "weights" if engine.gpus else "weights, cache, libraries"
    return Role(
        name=name,
        count=count,
        cpus=engine.cpus,
        gpus=engine.gpus,
        gib=gib,
        what=f"{engine.backend}, {engine.dtype}: {held}",
    )


def _rollout_role(config: Config, student: ModelSizes | None) -> Role:
    engine = config.rollout.engine
    if config.decodes_rollouts:
        gib = None if student is None else engine_gib(student, engine)
        return _engine_role("rollout", config.rollout.num_engines, engine, gib)
    return Role(
        name="rollout",
        count=config.rollout.num_engines,
        cpus=engine.cpus,
        gpus=0.0,
        gib=0.0,
        what="no engine: responses are given",
    )


def _probe_role(config: Config, teacher: ModelSizes | None) -> Role:
    gib = None if teacher is None else prober_gib(config, teacher)
    if config.probe_engine:
        return _engine_role("probe", config.num_probe_workers, config.probe_engine, gib)
    return Role(
        name="probe",
        count=config.num_probe_workers,
        cpus=config.probe.cpus,
        gpus=0.0,
        gib=gib,
        what="libraries; the teacher's engine continues",
    )


def _learner_role(
    config: Config, student: ModelSizes | None, teacher: ModelSizes | None
) -> Role:
    learner = config.learner
    known = None
    if student is not None:
        known = learner_gib(config, student, teacher or ModelSizes(parameters=0.0))
    return Role(
        name="learner",
        count=learner.num_ranks,
        cpus=learner.cpus,
        gpus=learner.gpus,
        gib=known,
        what=(
            f"ZeRO {learner.running_zero_stage}, {learner.dtype}: weights, gradients,"
            " optimizer, activations, loss"
        ),
    )
