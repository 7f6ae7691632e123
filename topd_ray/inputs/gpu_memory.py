"""Placement -> memory of each GPU: what each actor holds there, added up.

The sums are arithmetic over the sizes of the models; none was measured on a GPU.
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from topd_ray.actors.placement import PlacedActor, Placement
from topd_ray.actors.roles import ROLES, RoleName, role_of
from topd_ray.actors.transport import transport_of
from topd_ray.config import Config, EngineConfig
from topd_ray.errors import UserError
from topd_ray.inputs.estimates import (
    BYTES,
    GIB,
    ModelSizes,
    learner_parts,
    model_sizes,
    scoring_gib,
)
from topd_ray.weights.plan import BUFFER_BYTES

_CONTEXT_GIB = 0.5
"""CUDA's context of one process, with the workspaces of its libraries."""
_NCCL_GIB = 0.7
"""Buffers of a process group over several GPUs."""
_GRAPHS_GIB = 1.0
"""CUDA graphs that vLLM captures."""
_BATCHED_TOKENS = 2**14
"""Tokens of a step of vLLM, by its default for cards of 70 GiB and more."""
_LOGITS_COPIES = 3
"""Float32 logits of all sequences while vLLM samples: raw, scaled, sorted."""
_BUCKETS_GIB = 0.5
"""DeepSpeed's buffers for reduced gradients."""
_GATHERED_PARAMETERS = 1e9
"""Most that ZeRO 3 gathers at a time (stage3_max_live_parameters).

While the student is loaded a rank holds its share and one layer, which is less than
this, and has no gradients or optimizer yet: the start needs no sum for itself.
"""
_KEPT_ASLEEP = ("context", "graphs", "buckets", "teacher's head")
"""Parts that stay on the GPU while their actor sleeps."""
_FRAGMENTATION = 0.05
"""Share of what a learner holds that PyTorch's allocator cannot use again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorMemory:
    """What one actor holds on one GPU.

    Example: ActorMemory(actor="rollout[0]", parts={"weights": 7.5, "cache": 12.0,
    "activations": 1.3, "graphs": 1.0, "context": 0.5}).
    """

    actor: str
    parts: dict[str, float] | None
    """GiB by what they hold; None where the size of its model is not known."""
    role: RoleName
    asleep_gib: float = 0.0
    """What stays there while it sleeps: CUDA's context and graphs, an output head."""

    @property
    def gib(self) -> float | None:
        """Return the sum of the parts."""
        return None if self.parts is None else sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """All actors of one GPU."""

    node: int
    gpu: int
    actors: tuple[ActorMemory, ...]
    card_gib: float | None
    """`cluster.gpu_memory_gib`."""
    takes_turns: frozenset[RoleName] = frozenset()
    """Roles that sleep while others of these work."""

    @property
    def gib(self) -> float | None:
        """Return what is held at the most; None where a part of it is not known."""
        sums = self.turns.values()
        known = [gib for gib in sums if gib is not None]
        return max(known) if len(known) == len(sums) else None

    @property
    def turns(self) -> dict[str, float | None]:
        """Return the sum over the actors while each role here has its turn.

        Without turns there is one sum, of all roles.
        """
        here = {actor.role for actor in self.actors} & self.takes_turns
        if not here:
            return {"all": self._sum(frozenset())}
        return {role: self._sum(here - {role}) for role in ROLES if role in here}

    def _sum(self, asleep: AbstractSet[RoleName]) -> float | None:
        sums = [
            actor.asleep_gib if actor.role in asleep and actor.parts else actor.gib
            for actor in self.actors
        ]
        known = [gib for gib in sums if gib is not None]
        return sum(known) if len(known) == len(sums) else None

    @property
    def margin_gib(self) -> float | None:
        """Return what is left of the card, negative where it is too small."""
        if self.gib is None or self.card_gib is None:
            return None
        return self.card_gib - self.gib


def gpu_memory(
    config: Config,
    placement: Placement,
    takes_turns: frozenset[RoleName] = frozenset(),
) -> list[GpuMemory]:
    """Return the memory of every GPU in use, by node and index.

    `takes_turns`: the roles of `inputs.turns.roles_by_turns`.
    """
    student, teacher = model_sizes(config)
    card_gib = config.cluster.gpu_memory_gib
    # A learner rank's buffers find room where its activations and loss were.
    receives = not takes_turns and transport_of(config, placement) == "nccl"
    buffers = {"rollout": 2 * BUFFER_BYTES / GIB} if receives else {}
    return [
        GpuMemory(
            node=bundle.node,
            gpu=gpu,
            actors=tuple(
                _actor_memory(
                    config,
                    actor,
                    gpu,
                    student,
                    teacher,
                    buffers_gib=buffers.get(actor.kind, 0.0),
                )
                for actor in placement.on(bundle.node, gpu)
            ),
            card_gib=card_gib,
            takes_turns=takes_turns,
        )
        for bundle in placement.bundles
        for gpu in bundle.gpus
    ]


def refuse_too_little_memory(config: Config, gpus: list[GpuMemory]) -> None:
    """Raise UserError for a GPU whose actors hold more than it has, with the sum.

    Also for a cache that holds less than one sequence, which vLLM would refuse.
    """
    for message in _cache_refusals(config):
        raise UserError(message)
    for gpu in gpus:
        if gpu.margin_gib is not None and gpu.margin_gib < 0:
            terms = "; ".join(
                f"{actor.actor} {_sum_of(actor.parts or {})}" for actor in gpu.actors
            )
            if gpu.takes_turns:
                terms = f"by turns, {_sums_of_turns(gpu)}; awake {terms}"
            raise UserError(
                f"GPU {gpu.gpu} of node {gpu.node} would hold {gpu.gib:.1f} GiB and has"
                f" {gpu.card_gib:g} (cluster.gpu_memory_gib): {terms}; lower"
                " engine.kv_cache_gib or windows.token_budget, raise"
                " engine.tensor_parallel or learner.num_ranks with a higher"
                " learner.zero_stage, or give the actors more GPUs"
            )


def _sum_of(parts: dict[str, float]) -> str:
    terms = " + ".join(f"{what} {gib:.1f}" for what, gib in parts.items())
    return f"{sum(parts.values()):.1f} = {terms}"


def _sums_of_turns(gpu: GpuMemory) -> str:
    return ", ".join(f"{role} {gib:.1f}" for role, gib in gpu.turns.items())


def _actor_memory(
    config: Config,
    actor: PlacedActor,
    gpu: int,
    student: ModelSizes | None,
    teacher: ModelSizes | None,
    *,
    buffers_gib: float,
) -> ActorMemory:
    parts = _parts(config, actor, gpu, student, teacher, buffers_gib=buffers_gib)
    asleep = sum(gib for what, gib in (parts or {}).items() if what in _KEPT_ASLEEP)
    if parts is not None and "scoring" in parts and teacher is not None:
        # The output head, without the logits.
        asleep += BYTES[config.teacher.engine.dtype] * teacher.head / GIB
    return ActorMemory(
        actor=actor.name, parts=parts, role=role_of(actor), asleep_gib=asleep
    )


def _parts(
    config: Config,
    actor: PlacedActor,
    gpu: int,
    student: ModelSizes | None,
    teacher: ModelSizes | None,
    *,
    buffers_gib: float,
) -> dict[str, float] | None:
    if actor.kind == "learner":
        known = teacher or ModelSizes(parameters=0.0)
        return None if student is None else _learner(config, student, known)
    model = student if actor.kind == "rollout" else teacher
    engine = _engine_of(config, actor.kind)
    if model is None:
        return None
    parts = _engine(config, engine, model)
    if buffers_gib:
        parts["new weights"] = buffers_gib
    if actor.kind == "teacher" and gpu == actor.gpus[0]:
        parts["scoring"] = scoring_gib(config, model)
        if engine.tensor_parallel > 1:  # by the actor itself, beside vLLM's process
            parts["context"] += _CONTEXT_GIB
    return parts


def _engine_of(config: Config, kind: str) -> EngineConfig:
    if kind == "rollout":
        return config.rollout.engine
    if kind == "teacher":
        return config.teacher.engine
    assert config.probe_engine is not None, "a probe worker on a GPU has an engine"
    return config.probe_engine


def _engine(
    config: Config, engine: EngineConfig, model: ModelSizes
) -> dict[str, float]:
    """Return what an engine holds on each of its GPUs."""
    width = BYTES[engine.dtype]
    split = engine.tensor_parallel
    parts = {"weights": width * model.parameters / split / GIB}
    if engine.backend == "vllm":
        tokens = engine.max_num_batched_tokens or _BATCHED_TOKENS
        step = width * tokens * (3 * model.inner + 4 * model.width)
        logits = 4 * _LOGITS_COPIES * engine.max_num_seqs * model.rows
        parts["activations"] = (step + logits) / GIB
        parts["graphs"] = 0.0 if engine.enforce_eager else _GRAPHS_GIB
        parts["cache"] = _cache_gib(config, engine, sum(parts.values()))
    parts["context"] = _CONTEXT_GIB + (_NCCL_GIB if split > 1 else 0.0)
    return parts


def _cache_gib(config: Config, engine: EngineConfig, others_gib: float) -> float:
    """Return the cache on each GPU: of its size, or what is left of vLLM's share."""
    if engine.kv_cache_gib is not None:
        return engine.kv_cache_gib
    share_gib = engine.gpu_memory_utilization * (config.cluster.gpu_memory_gib or 0.0)
    return max(0.0, share_gib - others_gib)


def _learner(
    config: Config, student: ModelSizes, teacher: ModelSizes
) -> dict[str, float]:
    """Return what a rank holds at its peak."""
    parts = learner_parts(config, student, teacher)
    if config.learner.running_zero_stage >= 3:
        gathered = min(_GATHERED_PARAMETERS, student.parameters)
        parts["gathered"] = BYTES[config.learner.dtype] * gathered / GIB
    parts["buckets"] = _BUCKETS_GIB
    parts["fragmentation"] = _FRAGMENTATION * sum(parts.values())
    is_group = config.learner.num_ranks > 1
    parts["context"] = _CONTEXT_GIB + (_NCCL_GIB if is_group else 0.0)
    return parts


def _cache_refusals(config: Config) -> Iterator[str]:
    student, teacher = model_sizes(config)
    rollout = config.rollout.engine if config.decodes_rollouts else None
    longest = config.teacher_context_tokens
    engines = (
        ("rollout.engine", rollout, student, config.student_context_tokens),
        ("teacher.engine", config.teacher.engine, teacher, longest),
        ("probe.engine", config.probe_engine, teacher, longest),
    )
    for field, engine, model, needed in engines:
        if engine is None or model is None or not engine.gpus:
            continue
        tokens = cached_tokens(engine, model)
        sequence = engine.max_model_len or needed
        if tokens is not None and tokens < sequence:
            enough = sequence * _token_bytes(engine, model) / GIB
            yield (
                f"{field}.kv_cache_gib={engine.kv_cache_gib:g} holds {tokens:,} tokens,"
                f" and one sequence may have {sequence:,}, so vLLM would not start;"
                f" raise it to {enough:.2f} or more"
            )


def _token_bytes(engine: EngineConfig, model: ModelSizes) -> float:
    """Return the bytes of a cached token on each GPU."""
    return BYTES[engine.dtype] * model.cached * model.layers / engine.tensor_parallel


def cached_tokens(engine: EngineConfig, model: ModelSizes) -> int | None:
    """Return the tokens that an engine's cache holds; None where that is not known."""
    if engine.backend != "vllm" or engine.kv_cache_gib is None or not model.cached:
        return None
    return int(engine.kv_cache_gib * GIB / _token_bytes(engine, model))


__all__ = [
    "ActorMemory",
    "GpuMemory",
    "cached_tokens",
    "gpu_memory",
    "refuse_too_little_memory",
]
