"""A broadcast into an engine over two worker processes, each of which holds half.

Too long for `make test`, since two more processes import vLLM; `make chaos` runs it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contract import oracle
from tests.contract.backends import engine_config
from tests.contract.oracle import perturbed
from topd_ray.engines.protocols import TransferGroup, WeightFact
from topd_ray.engines.rendezvous import open_listener
from topd_ray.engines.vllm import VllmGeneration
from topd_ray.weights.transport import open_sender

pytestmark = [pytest.mark.engines, pytest.mark.chaos]
WORKERS = 2
BUFFER_BYTES = 40_000


class ModuleSource:
    """The weights of a model in this process, as a learner rank has them."""

    def __init__(self) -> None:
        self.model: Any = None

    def facts(self) -> list[WeightFact]:
        return [
            WeightFact(name=name, dtype="float32", shape=tuple(weight.shape))
            for name, weight in self.tensors()
        ]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in self.model.named_parameters():
            yield name, weight.detach()


@pytest.fixture(scope="module")
def engine(teacher_folder: Path) -> Iterator[VllmGeneration]:
    config = engine_config("vllm").model_copy(
        update={"tensor_parallel": WORKERS, "gpus": WORKERS}
    )
    opened = VllmGeneration(
        teacher_folder, config, max_model_len=oracle.MAX_MODEL_LEN, transport="gloo"
    )
    yield opened
    opened.close()


def test_both_workers_take_their_half_of_every_version(
    engine: VllmGeneration, teacher_folder: Path
) -> None:
    listener = open_listener("")
    group = TransferGroup(
        address="127.0.0.1",
        port=int(listener.getsockname()[1]),
        world_size=1 + WORKERS,
        buffer_bytes=BUFFER_BYTES,
    )
    source = ModuleSource()
    prompts = oracle.prompts(1, [3, 40])
    with ThreadPoolExecutor(1) as learner:
        opening = learner.submit(
            open_sender, "gloo", group, rank=0, listener=listener, timeout_s=120.0
        )
        engine.join(group, rank_offset=1)
        sender = opening.result(120)
        for seed in (1, 2):
            source.model = perturbed(teacher_folder, seed)
            pieces = sender.pieces(source)
            piece = next(pieces)
            assert piece is not None
            sending = learner.submit(next, pieces, None)
            engine.take_piece(piece)
            assert sending.result(120) is None
            expected = [oracle.greedy(source.model, prompt, 32) for prompt in prompts]
            assert oracle.tokens(engine, prompts) == expected
