"""The peak of an actor's memory, in GiB: a sum of what exists at its peak.

On a CPU the peak is that of the process, libraries included; on a GPU it is what the
actor allocates there, and vLLM adds its cache. `benchmarks/bench_memory.py` compares
the sums for a CPU with what actors take; those for a GPU were not measured.
"""

from dataclasses import dataclass
from pathlib import Path

from topd_ray.config import Config, EngineConfig
from topd_ray.models.facts import read_facts
from topd_ray.models.files import read_config

BYTES = {"float32": 4, "bfloat16": 2}
GIB = 2**30
_LIBRARIES_GIB = {"vllm": 0.9, "hf": 0.7, "fake": 0.2, "learner": 0.75, "probe": 0.38}
"""What a process holds before it loads a model."""
_CPU_CACHE_GIB = 1.0
"""Cache of vLLM on CPU where the config sets none."""
_PROFILED_TOKENS = 2**13
"""Tokens of the forward pass by which vLLM measures its memory at the start."""
_SCORED_POSITIONS = 2**10
"""Positions of a response whose logits the teacher holds at a time."""
_CHUNK_BYTES = {False: 2**27, True: 2**30}
"""Bytes of the loss's logits in float32, by whether the learner is on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Sizes of a model; those of its layers are 0 where only `size_b` is known.

    Example: Qwen2.5-0.5B has parameters=494e6, rows=151936, width=896, inner=4864,
    layers=24.
    """

    parameters: float
    rows: int = 0
    """Rows of the output head."""
    width: int = 0
    """Width of the hidden states."""
    inner: int = 0
    """Inner width of a feed-forward layer."""
    layers: int = 0

    @property
    def head(self) -> int:
        """Return the number of elements of the output head."""
        return self.rows * self.width


def sizes_of(folder: Path | None, size_b: float | None) -> ModelSizes | None:
    """Return the sizes of a model; None where nothing is known of it.

    Args:
        folder: Its folder; None where it is not on this machine.
        size_b: Parameters in billions, by the config.
    """
    if folder is None:
        return None if size_b is None else ModelSizes(parameters=size_b * 1e9)
    facts = read_facts(folder)
    return ModelSizes(
        parameters=facts.num_parameters,
        rows=facts.vocab_size,
        width=facts.hidden_size,
        inner=read_config(folder).get("intermediate_size") or 4 * facts.hidden_size,
        layers=facts.layers,
    )


def engine_gib(model: ModelSizes, engine: EngineConfig) -> float:
    """Return the memory of an engine; on a GPU that of its weights alone."""
    width = BYTES[engine.dtype]
    weights = width * model.parameters
    if engine.gpus:
        return weights / GIB
    if engine.backend != "vllm":
        return _LIBRARIES_GIB[engine.backend] + weights / GIB
    # vLLM packs a layer's weights in their place, and the head into two more copies.
    profile = width * _PROFILED_TOKENS * (3 * model.inner + 4 * model.width)
    total = weights + 2 * width * model.head + profile
    return (
        _LIBRARIES_GIB["vllm"] + (engine.kv_cache_gib or _CPU_CACHE_GIB) + total / GIB
    )


def teacher_gib(config: Config, model: ModelSizes) -> float:
    """Return the memory of a teacher: its engine, a float32 head, and its logits."""
    positions = min(_SCORED_POSITIONS, config.response_tokens)
    scoring = 4 * (model.head + 2 * positions * model.rows)
    return engine_gib(model, config.teacher.engine) + scoring / GIB


def prober_gib(config: Config, teacher: ModelSizes) -> float:
    """Return the memory of a probe worker; the embedding stays in pages of its file."""
    if config.probe_engine:
        return engine_gib(teacher, config.probe_engine)
    return _LIBRARIES_GIB["probe"]


def learner_gib(config: Config, student: ModelSizes, teacher: ModelSizes) -> float:
    """Return the memory of a learner rank at the end of a forward pass.

    Gradients of earlier micro-batches and the optimizer's states are there too.
    """
    learner = config.learner
    parts = [
        _state_bytes(config) * student.parameters,
        _activation_bytes(config, student),
        _loss_bytes(config, student, teacher),
    ]
    libraries = 0.0 if learner.gpus else _LIBRARIES_GIB["learner"]
    return libraries + sum(parts) / GIB


def zero_stage(config: Config) -> int:
    """Return the ZeRO stage that runs: in bfloat16, 0 and 1 run as 2."""
    learner = config.learner
    is_float32 = learner.dtype == "float32"
    return learner.zero_stage if is_float32 else max(learner.zero_stage, 2)


def _state_bytes(config: Config) -> float:
    """Return the bytes a parameter of weights, gradient and optimizer.

    DeepSpeed's mixed precision holds weights, float32 gradients, a float32 copy of the
    weights, and AdamW's two moments.
    """
    ranks = config.learner.num_ranks
    stage = zero_stage(config)
    weights = BYTES[config.learner.dtype] / (ranks if stage >= 3 else 1)
    gradients = 4.0 / (ranks if stage >= 2 else 1)
    master = 0.0 if config.learner.dtype == "float32" else 4.0
    return weights + gradients + (8.0 + master) / (ranks if stage >= 1 else 1)


def _activation_bytes(config: Config, student: ModelSizes) -> float:
    """Return the bytes that the backward pass of one micro-batch needs.

    A layer keeps 14 vectors of the model's width for a token and 5 of the inner one; in
    bfloat16 8 of the 14 are the float32 copies of its two norms.
    """
    learner = config.learner
    is_float32 = learner.dtype == "float32"
    vectors = (10 if is_float32 else 14) * student.width + 5 * student.inner
    kept = vectors * student.layers
    if learner.gradient_checkpointing:
        kept = student.width * student.layers + vectors
    return BYTES[learner.dtype] * _micro_batch_tokens(config) * kept


def _micro_batch_tokens(config: Config) -> int:
    rollouts = config.prompts.per_step * config.rollout.samples_per_prompt
    share = -(-rollouts // config.learner.num_ranks)
    whole = share * (config.prompts.max_tokens + config.response_tokens)
    return min(whole, max(config.windows.token_budget, config.sequence_tokens))


def _loss_bytes(config: Config, student: ModelSizes, teacher: ModelSizes) -> float:
    """Return the bytes of the head's gradient, the teacher's head, and the logits."""
    width = BYTES[config.learner.dtype]
    copy = 0 if config.learner.dtype == "float32" else width
    chunk = _CHUNK_BYTES[config.learner.gpus > 0] * width / 4
    total = (4 + copy) * student.head + 2 * chunk
    if config.teacher.signal == "hidden":
        total += BYTES[config.teacher.engine.dtype] * teacher.head
    return total


__all__ = [
    "ModelSizes",
    "engine_gib",
    "learner_gib",
    "prober_gib",
    "sizes_of",
    "teacher_gib",
    "zero_stage",
]
