"""What vLLM is started with, by what it runs on; vLLM itself is not started."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from topd_ray.config import EngineConfig
from topd_ray.engines import vllm
from topd_ray.errors import UserError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    platform = SimpleNamespace(is_cpu=lambda: platform.cpu, cpu=False)
    platforms = ModuleType("vllm.platforms")
    monkeypatch.setattr(platforms, "current_platform", platform, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    return platform


def test_on_a_gpu_vllm_takes_its_share_of_the_memory(machine: SimpleNamespace) -> None:
    machine.cpu = False
    options = vllm._machine(EngineConfig(gpu_memory_utilization=0.3))
    assert options == {"gpu_memory_utilization": 0.3}


def test_on_a_gpu_a_cache_with_a_size_needs_no_measurement(
    machine: SimpleNamespace,
) -> None:
    machine.cpu = False
    options = vllm._machine(EngineConfig(gpu_memory_utilization=0.3, kv_cache_gib=2))
    assert options["kv_cache_memory_bytes"] == 2 * 2**30
    # vLLM refuses to start where less than this share is free.
    assert options["gpu_memory_utilization"] < 0.05


def test_an_engine_of_a_gpu_build_that_sees_no_gpu_says_what_to_set(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.cpu = False
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="sees none: set `gpus`"):
        vllm._machine(EngineConfig())


def test_on_a_cpu_vllm_gets_a_cache_of_the_size_that_was_set(
    machine: SimpleNamespace,
) -> None:
    machine.cpu = True
    options = vllm._machine(EngineConfig(gpu_memory_utilization=0.3, kv_cache_gib=2))
    assert options["kv_cache_memory_bytes"] == 2 * 2**30
    assert "gpu_memory_utilization" not in options
    assert vllm._machine(EngineConfig())["kv_cache_memory_bytes"] == 2**30


def test_vllm_is_given_the_options_of_its_section(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, student_folder: Path
) -> None:
    def start(arguments: dict[str, Any], usage_context: Any) -> Any:
        del usage_context
        return SimpleNamespace(arguments=arguments, collective_rpc=lambda *_, **__: [])

    machine.cpu = True
    module: Any = sys.modules["vllm"]
    module.EngineArgs = dict
    module.LLMEngine = SimpleNamespace(from_engine_args=start)
    usage = ModuleType("vllm.usage.usage_lib")
    monkeypatch.setattr(
        usage, "UsageContext", SimpleNamespace(LLM_CLASS=None), raising=False
    )
    monkeypatch.setitem(sys.modules, "vllm.usage.usage_lib", usage)
    monkeypatch.setattr(os, "environ", {"VLLM_BATCH_INVARIANT": "1"})
    section = EngineConfig(
        gpus=2, tensor_parallel=2, expert_parallel=True, max_num_batched_tokens=4096
    )
    started = vllm.start_engine(student_folder, section)
    assert started.arguments["tensor_parallel_size"] == 2
    assert started.arguments["enable_expert_parallel"] is True
    assert started.arguments["max_num_batched_tokens"] == 4096
    # No environment variable decides a number of a run.
    assert os.environ["VLLM_BATCH_INVARIANT"] == "0"
    section = EngineConfig(gpus=1, batch_invariant=True)
    started = vllm.start_engine(student_folder, section)
    assert started.arguments["max_num_batched_tokens"] is None
    assert os.environ["VLLM_BATCH_INVARIANT"] == "1"
