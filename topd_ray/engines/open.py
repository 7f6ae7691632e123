"""Folder and engine section -> a running engine; imports its back end alone."""

from pathlib import Path

from topd_ray.config.base import EngineConfig
from topd_ray.config.weights import Transport
from topd_ray.engines.protocols import RolloutEngine, TeacherEngine


def open_generation(
    folder: Path,
    engine: EngineConfig,
    *,
    max_model_len: int,
    seed: int = 0,
    transport: Transport = "store",
    sleeps: bool = False,
) -> RolloutEngine:
    """Return an engine that decodes.

    Args:
        folder: Hugging Face folder of the model.
        engine: The engine's section; its `max_model_len`, where set, replaces the
            argument.
        max_model_len: Longest sequence, in tokens.
        seed: Seed of the process of vLLM; each request carries a seed too.
        transport: How new weights come; all but `store` are vLLM's alone.
        sleeps: Whether it is put to sleep at times.
    """
    length = engine.max_model_len or max_model_len
    if engine.backend == "vllm":
        from topd_ray.engines.vllm import VllmGeneration

        return VllmGeneration(
            folder,
            engine,
            max_model_len=length,
            seed=seed,
            transport=transport,
            sleeps=sleeps,
        )
    if engine.backend == "hf":
        from topd_ray.engines.hf import HfGeneration

        return HfGeneration(folder, engine, max_model_len=length)
    from topd_ray.engines.fake import FakeGeneration

    return FakeGeneration(folder, max_model_len=length)


def open_teacher(
    folder: Path,
    engine: EngineConfig,
    *,
    max_model_len: int,
    seed: int = 0,
    sleeps: bool = False,
) -> TeacherEngine:
    """Return an engine that scores and decodes; arguments as of `open_generation`."""
    length = engine.max_model_len or max_model_len
    if engine.backend == "vllm":
        from topd_ray.engines.vllm_teacher import VllmTeacher

        return VllmTeacher(
            folder, engine, max_model_len=length, seed=seed, sleeps=sleeps
        )
    if engine.backend == "hf":
        from topd_ray.engines.hf_teacher import HfTeacher

        return HfTeacher(folder, engine, max_model_len=length)
    from topd_ray.engines.fake import FakeTeacher

    return FakeTeacher(folder, max_model_len=length)


__all__ = ["open_generation", "open_teacher"]
