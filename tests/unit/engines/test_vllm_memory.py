"""How much memory vLLM is given, by what it runs on; vLLM itself is not started."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from topd_ray.config import EngineConfig
from topd_ray.engines import vllm


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    platform = SimpleNamespace(is_cpu=lambda: platform.cpu, cpu=False)
    platforms = ModuleType("vllm.platforms")
    monkeypatch.setattr(platforms, "current_platform", platform, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    return platform


def test_on_a_gpu_vllm_takes_its_share_of_the_memory(machine: SimpleNamespace) -> None:
    machine.cpu = False
    options = vllm._machine(EngineConfig(gpu_memory_utilization=0.3, kv_cache_gib=2))
    assert options == {"gpu_memory_utilization": 0.3}


def test_on_a_cpu_vllm_gets_a_cache_of_the_size_that_was_set(
    machine: SimpleNamespace,
) -> None:
    machine.cpu = True
    options = vllm._machine(EngineConfig(gpu_memory_utilization=0.3, kv_cache_gib=2))
    assert options["kv_cache_memory_bytes"] == 2 * 2**30
    assert "gpu_memory_utilization" not in options
