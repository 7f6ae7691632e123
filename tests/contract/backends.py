"""Back ends under contract."""

import pytest

from topd_ray.config.base import EngineConfig

THIRD_PARTY = pytest.mark.filterwarnings(
    "ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning"  # raised as vLLM starts
)
BACKENDS = ["hf", pytest.param("vllm", marks=pytest.mark.engines)]


def engine_config(backend: str) -> EngineConfig:
    """Exact arithmetic, and a cache that holds some 8000 tokens of the tiny models."""
    return EngineConfig(
        backend=backend, dtype="float32", enforce_eager=True, kv_cache_gib=0.004, max_num_seqs=64
    )
