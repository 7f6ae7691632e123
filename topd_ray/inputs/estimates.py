"""The peak of an actor's memory, in GiB: a sum of what exists at its peak.

On a CPU the peak is that of the process, libraries included; on a GPU it is what the
actor allocates there, and vLLM adds its cache. `benchmarks/bench_memory.py` compares
the sums for a CPU with what actors take; those for a GPU were not measured.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from topd_ray.config import Config, EngineConfig
from topd_ray.models.facts import read_facts
from topd_ray.models.files import read_config
from topd_ray.models.roles import find_student, find_teacher

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
    cached: int = 0
    """Numbers that the cache keeps of a token in one layer: keys and values."""

    @property
    def head(self) -> int:
        """Return the number of elements of the output head."""
        return self.rows * self.width


_QWEN3_ROWS = 151_936
PUBLISHED = {
    name: ModelSizes(
        parameters=parameters,
        rows=_QWEN3_ROWS,
        width=width,
        inner=inner,
        layers=layers,
        cached=2 * key_heads * 128,
    )
    for name, parameters, width, inner, layers, key_heads in (
        ("Qwen3-0.6B", 0.596e9, 1024, 3072, 28, 8),
        ("Qwen3-1.7B", 1.72e9, 2048, 6144, 28, 8),
        ("Qwen3-4B", 4.022e9, 2560, 9728, 36, 8),
        ("Qwen3-8B", 8.19e9, 4096, 12288, 36, 8),
        ("Qwen3-32B", 32.76e9, 5120, 25600, 64, 8),
        # Eight experts of width 768 work on a token.
        ("Qwen3-30B-A3B", 30.53e9, 2048, 6144, 48, 4),
    )
}
"""Sizes by config.json on the hub, for models that are not on this machine."""


def sizes_of(
    folder: Path | None, size_b: float | None, name: str = ""
) -> ModelSizes | None:
    """Return the sizes of a model; None where nothing is known of it.

    Args:
        folder: Its folder; None where it is not on this machine.
        size_b: Parameters in billions, by the config.
        name: Its name on the hub, of which a part may be one of `PUBLISHED`.
    """
    if folder is None:
        published = [sizes for part, sizes in PUBLISHED.items() if part in name]
        if size_b is None:
            return published[0] if published else None
        known = published[0] if published else ModelSizes(parameters=0.0)
        return replace(known, parameters=size_b * 1e9)
    facts = read_facts(folder)
    values = read_config(folder)
    heads = values.get("num_attention_heads") or 1
    key_heads = values.get("num_key_value_heads") or heads
    head_width = values.get("head_dim") or facts.hidden_size // heads
    return ModelSizes(
        parameters=facts.num_parameters,
        rows=facts.vocab_size,
        width=facts.hidden_size,
        inner=values.get("intermediate_size") or 4 * facts.hidden_size,
        layers=facts.layers,
        cached=2 * key_heads * head_width,
    )


def model_sizes(config: Config) -> tuple[ModelSizes | None, ModelSizes | None]:
    """Return the sizes of student and teacher; reads folders on this machine."""
    learner = config.learner
    student = sizes_of(find_student(config), learner.size_b, learner.model)
    size_b = config.teacher.size_b
    teacher = sizes_of(find_teacher(config), size_b, config.teacher_model)
    return student, teacher


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
    return engine_gib(model, config.teacher.engine) + scoring_gib(config, model)


def scoring_gib(config: Config, model: ModelSizes) -> float:
    """Return what a teacher holds beside its engine: a head, and float32 logits.

    The head is in float32 on a CPU, as the engine's weights on a GPU.
    """
    engine = config.teacher.engine
    width = BYTES[engine.dtype] if engine.gpus else 4
    positions = min(_SCORED_POSITIONS, config.response_tokens)
    return (width * model.head + 4 * 2 * positions * model.rows) / GIB


def prober_gib(config: Config, teacher: ModelSizes) -> float:
    """Return the memory of a probe worker; the embedding stays in pages of its file."""
    if config.probe_engine:
        return engine_gib(teacher, config.probe_engine)
    return _LIBRARIES_GIB["probe"]


def learner_gib(config: Config, student: ModelSizes, teacher: ModelSizes) -> float:
    """Return the memory of a learner rank at the peak of a micro-batch.

    Gradients of earlier micro-batches and the optimizer's states are there too.
    """
    libraries = 0.0 if config.learner.gpus else _LIBRARIES_GIB["learner"]
    return libraries + sum(learner_parts(config, student, teacher).values())


def learner_parts(
    config: Config, student: ModelSizes, teacher: ModelSizes
) -> dict[str, float]:
    """Return what a learner rank holds, in GiB, without its libraries."""
    parts = {
        what: count * student.parameters for what, count in _state_bytes(config).items()
    }
    parts["activations"] = _kept_bytes(config, student)
    # One after the other: the loss is freed before the last layer's backward pass.
    parts["loss or backward"] = max(
        _loss_bytes(config, student), _backward_bytes(config, student)
    )
    if config.teacher.signal == "hidden":
        head = BYTES[config.teacher.engine.dtype] * teacher.head
        parts["teacher's head"] = head
    return {what: size / GIB for what, size in parts.items()}


def _state_bytes(config: Config) -> dict[str, float]:
    """Return the bytes a parameter of weights, gradient and optimizer.

    DeepSpeed's mixed precision holds weights, float32 gradients, a float32 copy of the
    weights, and AdamW's two moments.
    """
    ranks = config.learner.num_ranks
    stage = config.learner.running_zero_stage
    weights = BYTES[config.learner.dtype] / (ranks if stage >= 3 else 1)
    gradients = 4.0 / (ranks if stage >= 2 else 1)
    master = 0.0 if config.learner.dtype == "float32" else 4.0
    states = (8.0 + master) / (ranks if stage >= 1 else 1)
    return {"weights": weights, "gradients": gradients, "optimizer": states}


def _kept_bytes(config: Config, student: ModelSizes) -> float:
    """Return the bytes that the forward pass of one micro-batch keeps."""
    kept = _layer_numbers(config, student)
    if config.learner.gradient_checkpointing:
        kept = student.width
    return _token_bytes(config) * kept * student.layers


def _layer_numbers(config: Config, student: ModelSizes) -> float:
    """Return the numbers that a layer keeps for a token.

    They are 14 vectors of the model's width and 5 of the inner one; in bfloat16 8 of
    the 14 are the float32 copies of its two norms.
    """
    norms = 4 if config.learner.dtype == "float32" else 8
    return (6 + norms) * student.width + 5 * student.inner


def _backward_bytes(config: Config, student: ModelSizes) -> float:
    """Return the bytes that come to those kept while the last layer goes backward.

    Two gradients of inner vectors, what the layer computes again, and the gradient of
    the head, which waits for that of the embedding.
    """
    numbers = 2.0 * student.inner
    if config.learner.gradient_checkpointing:
        numbers += _layer_numbers(config, student)
    head = BYTES[config.learner.dtype] * student.head
    return _token_bytes(config) * numbers + head


def _token_bytes(config: Config) -> float:
    """Return the bytes of one number for each token of a micro-batch."""
    return BYTES[config.learner.dtype] * _micro_batch_tokens(config)


def _micro_batch_tokens(config: Config) -> int:
    rollouts = config.prompts.per_step * config.rollout.samples_per_prompt
    share = -(-rollouts // config.learner.num_ranks)
    whole = share * (config.prompts.max_tokens + config.response_tokens)
    return min(whole, max(config.windows.token_budget, config.sequence_tokens))


def _loss_bytes(config: Config, student: ModelSizes) -> float:
    """Return the bytes of the head's gradient, the logits, and 8 vectors a token: the
    last layer's states, what their norm keeps, and their gradient.
    """
    width = BYTES[config.learner.dtype]
    copy = 0 if config.learner.dtype == "float32" else width
    chunk = _CHUNK_BYTES[config.learner.gpus > 0] * width / 4
    states = 8 * _token_bytes(config) * student.width
    return (4 + copy) * student.head + 2 * chunk + states


__all__ = [
    "PUBLISHED",
    "ModelSizes",
    "engine_gib",
    "learner_gib",
    "learner_parts",
    "model_sizes",
    "prober_gib",
    "scoring_gib",
    "sizes_of",
    "teacher_gib",
]
