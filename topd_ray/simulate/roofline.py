"""Rates of the paper's models on H100 by arithmetic: a prediction, nothing here was
measured.

Work is bound by arithmetic (tokens read, trained) or by memory (tokens written) at a
stated share of the data sheet's peak. Model shapes are those of their config.json on
the Hugging Face hub.
"""

from dataclasses import dataclass, replace

from topd_ray.config import Config, EngineConfig
from topd_ray.errors import UserError
from topd_ray.simulate.rates import Decode, Forward, Rates, Workload, long_tailed

_BF16 = 2
_MEAN_SHARE = 0.6
_SPREAD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a model's cost depends on."""

    layers: int
    attention_width: int
    """Query heads x head width."""
    cache_width: int
    """Key heads x head width; the cache holds as many values."""
    width: int
    vocab: int
    dense: float
    """Parameters that every token passes, the output head among them."""
    experts: float = 0.0
    """Parameters of all experts."""
    expert_share: float = 1.0
    """Share of them that one token wakes."""

    @property
    def active(self) -> float:
        """Parameters that one token passes."""
        return self.dense + self.experts * self.expert_share

    @property
    def pair_flops(self) -> float:
        """Attention forward, of one token to one before it."""
        # Score and weighted value, 2 flops each a component.
        return 4.0 * self.attention_width * self.layers

    @property
    def cache_bytes(self) -> float:
        """Of one token."""
        return 2.0 * self.cache_width * self.layers * _BF16


def _qwen3(*, layers: int, heads: int, width: int, dense: float) -> Shape:
    """Return a dense model of the family: 8 heads of keys, 128 components a head."""
    return Shape(
        layers=layers,
        attention_width=heads * 128,
        cache_width=8 * 128,
        width=width,
        vocab=151_936,
        dense=dense,
    )


SHAPES = {
    "Qwen3-0.6B": _qwen3(layers=28, heads=16, width=1024, dense=0.596e9),
    "Qwen3-1.7B": _qwen3(layers=28, heads=16, width=2048, dense=1.72e9),
    "Qwen3-4B": _qwen3(layers=36, heads=32, width=2560, dense=4.02e9),
    # Without the embedding, which is another table than the head.
    "Qwen3-8B": _qwen3(layers=36, heads=32, width=4096, dense=7.57e9),
    "Qwen3-32B": _qwen3(layers=64, heads=64, width=5120, dense=31.98e9),
    "Qwen3-30B-A3B": replace(
        _qwen3(layers=48, heads=32, width=2048, dense=1.23e9),
        cache_width=4 * 128,
        # Layers x experts x matrices of an expert x width x width of an expert.
        experts=48 * 128 * 3 * 2048 * 768,
        expert_share=8 / 128,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A GPU and what is around it: peaks of the data sheet, and the shares that are
    reached.
    """

    name: str = "H100 SXM 80 GB"
    flops: float = 989e12
    """bfloat16, dense."""
    memory_bytes_s: float = 3.35e12
    link_bytes_s: float = 450e9
    """To the other GPUs of its node, one way."""
    network_bytes_s: float = 50e9
    """Between nodes, a GPU."""
    host_bytes_s: float = 5e9
    """Weights through the object store: copies and checksum of one process."""
    pcie_bytes_s: float = 25e9
    """Between a GPU and page-locked memory of its host, one way."""
    gpus_a_node: int = 8
    read_share: float = 0.5
    """Of `flops`, reading a dense model's tokens."""
    expert_read_share: float = 0.3
    """The same with experts."""
    train_share: float = 0.4
    decode_share: float = 0.65
    """Of `memory_bytes_s`, writing tokens."""
    link_share: float = 0.6
    """Of link and network."""
    launch_s: float = 1.5e-3
    """A decode step beside its reads: scheduling and sampling."""
    call_s: float = 0.02
    """A call or micro-batch beside its arithmetic."""
    transport_s: float = 2e-4
    """A window of K = 50 on the host's cores: cost matrix and plan."""
    latency_s: float = 2e-3
    """A call of the driver."""


def roofline_rates(config: Config, hardware: Hardware) -> Rates:
    """Of the config's models, ranks and ZeRO stage. Raises UserError for a model
    without shape.
    """
    student = _shape(config.learner.model)
    teacher = _shape(config.teacher_model)
    share = hardware.expert_read_share if teacher.experts else hardware.read_share
    weights = student.dense * _BF16
    return Rates(
        roll_out=_decode(student, hardware),
        # 2 flops a parameter: a product and a sum.
        prompt_s=2 * student.active / (hardware.flops * hardware.read_share),
        score=Forward(
            call_s=hardware.call_s,
            token_s=2 * teacher.active / (hardware.flops * share),
            pair_s=teacher.pair_flops / (hardware.flops * hardware.read_share),
        ),
        continue_from=_decode(teacher, hardware),
        continue_call_s=hardware.call_s,
        transport_call_s=0.0,
        transport_s=hardware.transport_s,
        learn=_learn(config, student, teacher, hardware),
        step_s=_optimizer_s(config, student, hardware),
        publish_s=weights / hardware.host_bytes_s,
        update_s=weights / hardware.host_bytes_s,
        latency_s=hardware.latency_s,
        student_move_s=_move_s(student, config.rollout.engine, hardware),
        teacher_move_s=_move_s(teacher, config.teacher.engine, hardware),
        learner_move_s=_states_move_s(config, student, hardware),
    )


def _move_s(shape: Shape, engine: EngineConfig, hardware: Hardware) -> float:
    """Return the seconds in which each GPU of an engine copies its share of weights."""
    share = (shape.dense + shape.experts) * _BF16 / engine.tensor_parallel
    return share / hardware.pcie_bytes_s


def _states_move_s(config: Config, student: Shape, hardware: Hardware) -> float:
    """Return the seconds in which a rank copies weights, gradients and optimizer.

    16 bytes a parameter are sharded, 2 of the weights with ZeRO 3 alone.
    """
    ranks = config.learner.num_ranks
    whole = _BF16 / ranks if config.learner.running_zero_stage == 3 else _BF16
    moved = student.dense * whole + _trained(config, student) * 16 / ranks
    return moved / hardware.pcie_bytes_s


def _trained(config: Config, student: Shape) -> float:
    """Return the parameters that have gradients: adapters are next to none."""
    return 0.0 if config.learner.lora else student.dense


def assumed_workload(config: Config) -> Workload:
    """Log-normal responses of 0.6 x the longest, cut there; prompts of half their
    limit.
    """
    longest = config.rollout.max_response_tokens
    return Workload(
        quantiles=long_tailed(
            mean=_MEAN_SHARE * longest, spread=_SPREAD, longest=longest
        ),
        prompt_tokens=config.prompts.max_tokens // 2,
        window_tokens=config.probe.window,
    )


def _shape(model: str) -> Shape:
    for name, shape in SHAPES.items():
        if name in model:
            return shape
    raise UserError(
        f"topd plan: no shape is known for model {model}, only for {', '.join(SHAPES)};"
        " take the rates of a run of it: --from RUN"
    )


def _decode(shape: Shape, hardware: Hardware) -> Decode:
    bytes_s = hardware.memory_bytes_s * hardware.decode_share
    return Decode(
        step_s=hardware.launch_s + shape.dense * _BF16 / bytes_s,
        seq_s=2 * shape.active / (hardware.flops * hardware.read_share),
        context_s=shape.cache_bytes / bytes_s,
        expert_s=shape.experts * _BF16 / bytes_s,
        expert_share=shape.expert_share,
    )


def _learn(
    config: Config, student: Shape, teacher: Shape, hardware: Hardware
) -> Forward:
    """Forward, backward, recomputation; the teacher's head; collectives of a
    micro-batch.
    """
    # Backward costs two forwards, one where the weights are frozen; checkpointing
    # repeats the forward.
    passes = 2 if config.learner.lora else 3
    passes += config.learner.gradient_checkpointing
    flops_s = hardware.flops * hardware.train_share
    # DeepSpeed's bfloat16 optimizer shards gradients even at stage 0 or 1.
    stage = config.learner.running_zero_stage
    ranks = config.learner.num_ranks
    sharing = config.learner.sequence_parallel
    # With ZeRO 3 weights are gathered twice; gradients are reduced once.
    gathered = 2 * student.dense if stage == 3 else 0.0
    moved = _BF16 * (gathered + _trained(config, student))
    return Forward(
        call_s=hardware.call_s
        + moved * (ranks - 1) / ranks / _collective(ranks, hardware),
        token_s=(2 * passes * student.active + 2 * teacher.width * teacher.vocab)
        / flops_s
        / sharing,
        pair_s=passes * student.pair_flops / flops_s / sharing,
    )


def _optimizer_s(config: Config, student: Shape, hardware: Hardware) -> float:
    """Float32 weights, moments and gradient, read and written; then the weights
    gathered.
    """
    ranks = config.learner.num_ranks
    # 28 bytes a parameter: weight and both moments are read and written in float32, the
    # gradient is read.
    trained = _trained(config, student)
    touched = trained * 28 / ranks / (hardware.memory_bytes_s * hardware.decode_share)
    # A rank receives every share but its own.
    gathered = trained * _BF16 * (ranks - 1) / ranks
    return touched + gathered / _collective(ranks, hardware)


def _collective(ranks: int, hardware: Hardware) -> float:
    inside = ranks <= hardware.gpus_a_node
    return (
        hardware.link_bytes_s if inside else hardware.network_bytes_s
    ) * hardware.link_share
