"""The base class of config sections, and the section of an inference engine."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
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
    tensor_parallel: PositiveInt = 1
    """GPUs that one engine is split over."""
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
