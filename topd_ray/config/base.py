"""The base class of config sections, and the section of an inference engine."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


class Section(BaseModel):
    """One frozen section of the config; an unknown key is an error."""

    model_config = ConfigDict(
        # Frozen, because a field that changed later would be checked by no rule. No
        # infinity, because an endless deadline would pass as a positive one.
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Name = Annotated[str, Field(min_length=1)]
Column = Literal["prompt", "system", "answer", "reference", "response", "prompt_id"]
ColumnNames = dict[Column, Name | None]
Variables = dict[str, Any]
Backend = Literal["vllm", "hf", "fake"]
Dtype = Literal["float32", "bfloat16"]


class EngineConfig(Section):
    """How one inference engine runs and what it takes of a machine."""

    backend: Backend = "vllm"
    """`vllm`; `hf` (transformers, for small models and where vLLM cannot be installed);
    `fake` (tests only).
    """
    dtype: Dtype = "bfloat16"
    """Number format of weights and activations."""
    max_model_len: PositiveInt | None = None
    """Longest sequence in tokens; by default as long as prompts, responses and windows
    need.
    """
    max_num_seqs: PositiveInt = 64
    """Sequences decoded at once."""
    max_num_batched_tokens: PositiveInt | None = None
    """Tokens of one step of vLLM on a GPU; a longer prompt is read in pieces. Fewer
    need less memory and delay running sequences less; by default vLLM chooses.
    """
    tensor_parallel: PositiveInt = 1
    """GPUs that one engine is split over."""
    expert_parallel: bool = False
    """With `tensor_parallel`, give each GPU whole experts and not a slice of each; for
    mixtures of experts, whose slices are narrow on many GPUs.
    """
    batch_invariant: bool = False
    """Let no sequence's numbers depend on what else is in the batch (vLLM's kernels for
    that, on a GPU): a repeated run gives the same tokens, more slowly.
    """
    gpu_memory_utilization: Fraction = 0.9
    """Share of a GPU's memory that vLLM may take for weights and cache, where
    `kv_cache_gib` is not set; ignored on CPU.
    """
    kv_cache_gib: PositiveFloat | None = None
    """Size of the cache in GiB, on each GPU of the engine. None: 1 GiB on CPU; on a GPU
    what `gpu_memory_utilization` leaves. vLLM measures that at its start, so an engine
    that shares its GPU needs a size.
    """
    enforce_eager: bool = False
    """No graph capture or compilation: slower on a GPU, quicker to start on a CPU."""
    cpus: NonNegativeFloat = 1.0
    """Logical CPUs that Ray sets aside for one engine."""
    gpus: NonNegativeFloat = 0.0
    """GPUs of one engine, by `cluster.layout: manual`; a fraction shares one. 0: a CPU.
    The other layouts set it to `tensor_parallel`.
    """

    @model_validator(mode="after")
    def _options_of_vllm_have_what_they_need(self) -> Self:
        on_gpu = {
            "max_num_batched_tokens": self.max_num_batched_tokens is not None,
            "batch_invariant": self.batch_invariant,
            "expert_parallel": self.expert_parallel,
        }
        for name in (name for name, is_set in on_gpu.items() if is_set):
            value = getattr(self, name)
            if self.backend != "vllm":
                raise ValueError(
                    f"{name}={value} with backend={self.backend}: it is an option of"
                    " vLLM; drop it, or set backend=vllm"
                )
            if self.gpus == 0:
                raise ValueError(
                    f"{name}={value} with gpus=0: vLLM has it on a GPU alone; drop it,"
                    " or give the engine a GPU"
                )
        if self.expert_parallel and self.tensor_parallel == 1:
            raise ValueError(
                "expert_parallel=True with tensor_parallel=1: one GPU holds all experts"
                " anyway; drop it, or raise tensor_parallel"
            )
        tokens = self.max_num_batched_tokens
        if tokens is not None and tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={tokens} is less than"
                f" max_num_seqs={self.max_num_seqs}, of which each decodes a token a"
                " step; raise the one or lower the other"
            )
        return self
