"""Back ends under contract."""

from pathlib import Path

import pytest

from topd_ray.config.base import EngineConfig
from topd_ray.engines.open import open_generation, open_teacher
from topd_ray.engines.protocols import GenerationEngine

THIRD_PARTY = pytest.mark.filterwarnings(
    # vLLM raises it as it starts
    "ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning"
)
BACKENDS = ["hf", pytest.param("vllm", marks=pytest.mark.engines)]
DECODERS = [
    *BACKENDS,
    "hf-teacher",
    pytest.param("vllm-teacher", marks=pytest.mark.engines),
]
"""Engines that decode: a student's, and a teacher's, which scores too."""


def engine_config(backend: str) -> EngineConfig:
    """Exact arithmetic, and a cache that holds some 8000 tokens of the tiny models."""
    return EngineConfig(
        backend=backend,
        dtype="float32",
        enforce_eager=True,
        kv_cache_gib=0.004,
        max_num_seqs=64,
    )


def open_decoder(kind: str, folder: Path, *, max_model_len: int) -> GenerationEngine:
    """One of DECODERS."""
    backend, _, teacher = kind.partition("-")
    opener = open_teacher if teacher else open_generation
    return opener(folder, engine_config(backend), max_model_len=max_model_len)
