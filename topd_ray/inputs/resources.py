"""Config -> plan of a run: actors, CPUs, GPUs, memory of each role, tokens of a step.

Memory is arithmetic, not a measurement: weights, gradients and optimizer states of the
learner; weights of an engine, to which vLLM adds its cache.
"""

from dataclasses import dataclass
from pathlib import Path

from topd_ray.config import Config, EngineConfig
from topd_ray.models.facts import read_facts
from topd_ray.models.roles import find_student, find_teacher

_BYTES = {"float32": 4, "bfloat16": 2}
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
    """Model memory of one actor in GiB; None where the model's size is unknown."""
    what: str
    """What the memory holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Roles of a run, and the most tokens that one optimizer step can bring."""

    roles: list[Role]
    """In the order in which a rollout passes them."""
    rollouts_a_step: int
    student_tokens_a_step: int
    probe_tokens_a_step: int

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
    student = _num_parameters(find_student(config), config.learner.size_b)
    teacher = _num_parameters(find_teacher(config), config.teacher.size_b)
    rollouts = config.prompts.per_step * config.rollout.samples_per_prompt
    tokens = rollouts * config.rollout.max_response_tokens
    # An upper bound: a rollout that ends early has fewer candidates.
    per_rollout = max(
        config.candidates.min_per_rollout,
        round(config.candidates.fraction * config.rollout.max_response_tokens),
    )
    roles = [
        _rollout_role(config, student),
        _engine_role(
            "teacher", config.teacher.num_engines, config.teacher.engine, teacher
        ),
        _learner_role(config, student),
    ]
    if config.num_probe_workers:
        # Behind the teacher, whose losses choose what is probed.
        roles.insert(2, _probe_role(config, teacher))
    return Plan(
        roles=roles,
        rollouts_a_step=rollouts,
        student_tokens_a_step=tokens,
        probe_tokens_a_step=(
            rollouts * per_rollout * config.probe.window if config.uses_probes else 0
        ),
    )


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


def _num_parameters(folder: Path | None, size_b: float | None) -> float | None:
    if folder is not None:
        return float(read_facts(folder).num_parameters)
    return None if size_b is None else size_b * 1e9


def _engine_role(
    name: str, count: int, engine: EngineConfig, parameters: float | None
) -> Role:
    return Role(
        name=name,
        count=count,
        cpus=engine.cpus,
        gpus=engine.gpus,
        gib=None if parameters is None else parameters * _BYTES[engine.dtype] / 2**30,
        what=f"{engine.backend}, {engine.dtype} weights",
    )


def _rollout_role(config: Config, parameters: float | None) -> Role:
    engine = config.rollout.engine
    if config.decodes_rollouts:
        return _engine_role("rollout", config.rollout.num_engines, engine, parameters)
    return Role(
        name="rollout",
        count=config.rollout.num_engines,
        cpus=engine.cpus,
        gpus=0.0,
        gib=0.0,
        what="no engine: responses are given",
    )


def _probe_role(config: Config, parameters: float | None) -> Role:
    if config.probe_engine:
        return _engine_role(
            "probe", config.num_probe_workers, config.probe_engine, parameters
        )
    return Role(
        name="probe",
        count=config.num_probe_workers,
        cpus=config.probe.cpus,
        gpus=0.0,
        gib=0.0,
        what="transport alone; the teacher's engine continues",
    )


def _learner_role(config: Config, parameters: float | None) -> Role:
    """Return the learner's role.

    DeepSpeed's mixed precision holds weights, float32 gradients, a float32 master copy
    of the weights, and AdamW's two moments.
    """
    learner = config.learner
    ranks = learner.num_ranks
    is_float32 = learner.dtype == "float32"
    # DeepSpeed's bfloat16 optimizer shards gradients even at stage 0 or 1.
    stage = learner.zero_stage if is_float32 else max(learner.zero_stage, 2)
    weights = _BYTES[learner.dtype] / (ranks if stage >= 3 else 1)
    gradients = 4.0 / (ranks if stage >= 2 else 1)
    # float32 weights are their own master copy.
    master = 0.0 if is_float32 else 4.0
    states = (8.0 + master) / (ranks if stage >= 1 else 1)
    total = weights + gradients + states
    return Role(
        name="learner",
        count=ranks,
        cpus=learner.cpus,
        gpus=learner.gpus,
        gib=None if parameters is None else parameters * total / 2**30,
        what=f"ZeRO {stage}, {learner.dtype}: weights, gradients, optimizer",
    )
