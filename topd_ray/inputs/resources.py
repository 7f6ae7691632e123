"""What a config asks for, before anything starts: actors, CPUs, GPUs, memory a role,
tokens a step.

Memory is arithmetic, not a measurement: weights, gradients and optimizer states of the
learner; weights of an engine, to which vLLM adds its cache.
"""

from dataclasses import dataclass

from topd_ray.config import Config, EngineConfig
from topd_ray.models.folder import find_model, read_facts

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One kind of actor."""

    name: str
    count: int
    cpus: float
    gpus: float
    gib: float | None
    """Model memory of one actor in GiB; None where the model's size is unknown."""
    what: str
    """What the memory holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run's roles, and the most tokens one optimizer step can bring."""

    roles: list[Role]
    rollouts_a_step: int
    student_tokens_a_step: int
    probe_tokens_a_step: int

    @property
    def cpus(self) -> float:
        """Logical CPUs of all actors."""
        return sum(role.count * role.cpus for role in self.roles)

    @property
    def gpus(self) -> float:
        """GPUs of all actors."""
        return sum(role.count * role.gpus for role in self.roles)


def make_plan(config: Config) -> Plan:
    """The plan of a config; reads model folders where they are on this machine."""
    student = _parameters(config.learner.model, config.learner.size_b)
    teacher = _parameters(config.teacher_model, config.teacher.size_b)
    rollouts = config.prompts.per_step * config.rollout.samples_per_prompt
    tokens = rollouts * config.rollout.max_response_tokens
    per_rollout = max(
        config.candidates.min_per_rollout,
        round(config.candidates.fraction * config.rollout.max_response_tokens),
    )
    roles = [
        _engine_role(
            "rollout", config.rollout.num_engines, config.rollout.engine, student
        ),
        _engine_role(
            "teacher", config.teacher.num_engines, config.teacher.engine, teacher
        ),
        _learner_role(config, student),
    ]
    if config.num_probe_workers:
        roles.insert(2, _probe_role(config, teacher))
    return Plan(
        roles=roles,
        rollouts_a_step=rollouts,
        student_tokens_a_step=tokens,
        probe_tokens_a_step=(
            rollouts * per_rollout * config.probe.window if config.uses_probes else 0
        ),
    )


def _parameters(model: str, size_b: float | None) -> float | None:
    folder = find_model(model)
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
    """DeepSpeed's mixed precision: weights, fp32 gradients, fp32 master copy and two
    moments.
    """
    learner, ranks = config.learner, config.learner.num_ranks
    stage = (
        learner.zero_stage if learner.dtype == "float32" else max(learner.zero_stage, 2)
    )
    weights = _BYTES[learner.dtype] / (ranks if stage >= 3 else 1)
    gradients = 4.0 / (ranks if stage >= 2 else 1)
    master = 0.0 if learner.dtype == "float32" else 4.0
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
