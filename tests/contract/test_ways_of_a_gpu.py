"""What vLLM does on GPUs alone, done on a CPU: an engine over two processes, prompts
that are read in pieces, and a step that is queued before the one before it is done.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tests.contract import oracle
from tests.contract.backends import THIRD_PARTY, engine_config
from topd_ray.engines import vllm
from topd_ray.engines.open import open_teacher
from topd_ray.engines.protocols import TeacherEngine
from topd_ray.errors import EngineDiedError

pytestmark = [THIRD_PARTY, pytest.mark.engines]
MAX_MODEL_LEN = 256
PIECE = 32
LENGTHS = [100, 31, 32, 33, 150]
"""Up to five pieces, and the lengths around one."""


def assert_as_transformers(engine: TeacherEngine, model: torch.nn.Module) -> None:
    """Compare states, greedy tokens, and the states that predicted them."""
    sequences = oracle.prompts(21, LENGTHS)
    for sequence, got_LD in zip(
        sequences, engine.hidden_states(sequences), strict=True
    ):
        want_LD = oracle.hidden(model, sequence)
        np.testing.assert_allclose(got_LD, want_LD, rtol=1e-4, atol=1e-4)
    requests = [
        oracle.request(sequence, request_id=f"{i}", max_tokens=8, states=True)
        for i, sequence in enumerate(sequences)
    ]
    for asked, answer in zip(requests, oracle.run(engine, requests), strict=True):
        prompt_ids = np.asarray(asked.prompt_ids)
        token_ids_N = answer.token_ids_N
        assert token_ids_N.tolist() == oracle.greedy(model, prompt_ids, 8)
        read = np.concatenate([prompt_ids, token_ids_N[:-1]])
        want_ND = oracle.hidden(model, read)[len(prompt_ids) - 1 :]
        np.testing.assert_allclose(answer.states_ND, want_ND, rtol=1e-4, atol=1e-4)


@pytest.mark.chaos
def test_an_engine_over_two_processes_is_one_model_and_dies_as_one(
    teacher_folder: Path,
) -> None:
    split = {"tensor_parallel": 2, "gpus": 2.0}
    config = engine_config("vllm").model_copy(update=split)
    engine = open_teacher(teacher_folder, config, max_model_len=MAX_MODEL_LEN)
    try:
        assert_as_transformers(engine, oracle.load(teacher_folder))
        model = oracle.perturbed(teacher_folder, 3)
        engine.load_weights(oracle.named_arrays(model))
        assert_as_transformers(engine, model)
        worker = psutil.Process().children()[-1]
        worker.kill()
        with pytest.raises(EngineDiedError):
            engine.hidden_states(oracle.prompts(22, [200]))
        with pytest.raises(EngineDiedError):
            engine.hidden_states(oracle.prompts(23, [10]))
    finally:
        engine.close()


class NoStream:
    """A stream or an event of a device that does everything at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True


@contextmanager
def _no_stream(*_: Any, **__: Any) -> Iterator[None]:
    yield


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vLLM on a CPU schedule ahead and read prompts in pieces, as on a GPU."""
    from vllm.platforms.cpu import CpuPlatform

    update = CpuPlatform.check_and_update_config.__func__

    def scheduling_ahead(cls: Any, config: Any) -> None:
        update(cls, config)
        config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(
        CpuPlatform, "check_and_update_config", classmethod(scheduling_ahead)
    )
    for name in ("Event", "Stream"):
        monkeypatch.setattr(torch.cuda, name, NoStream)
    monkeypatch.setattr(torch, "Event", NoStream)
    monkeypatch.setattr(torch.cuda, "stream", _no_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", NoStream)
    machine = vllm._machine
    in_pieces = {"enable_chunked_prefill": True}
    monkeypatch.setattr(vllm, "_machine", lambda engine: machine(engine) | in_pieces)


@pytest.mark.usefixtures("ahead")
def test_prompts_in_pieces_and_steps_queued_ahead_change_no_number(
    teacher_folder: Path,
) -> None:
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": PIECE}
    config = engine_config("vllm").model_copy(update=sizes)
    engine: Any = open_teacher(teacher_folder, config, max_model_len=MAX_MODEL_LEN)
    try:
        core = engine._stepper.do(lambda e: e.engine.engine_core.engine_core)
        assert core.async_scheduling
        assert core.batch_queue_size == 2
        scheduler = core.scheduler.scheduler_config
        assert scheduler.max_num_batched_tokens == PIECE
        for seed in (4, 5):
            model = oracle.perturbed(teacher_folder, seed)
            engine.load_weights(oracle.named_arrays(model))
            assert_as_transformers(engine, model)
        prompt_ids = oracle.prompts(24, [20])[0]
        begun = engine.generate(
            [
                oracle.request(prompt_ids, request_id=f"{tokens}", max_tokens=tokens)
                for tokens in (1, 100)
            ]
        )
        assert next(begun).request_id == "1"
        begun.close()  # two steps of the other are queued
        assert_as_transformers(engine, model)
    finally:
        engine.close()
