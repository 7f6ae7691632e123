"""The receiving end of a broadcast by gloo, without a model: vLLM's engine, that keeps
what it is given.
"""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from topd_ray.engines.protocols import TransferGroup, TransferPiece
from topd_ray.engines.rendezvous import open_listener
from topd_ray.learner import LearnerActor

Received = dict[str, NDArray[Any]]
BUFFER_BYTES = 100_000
"""Several buffers, the largest of which is one weight."""


class Receiver(threading.Thread):
    """A worker of a rollout engine, in a thread: it waits outside Python's lock."""

    def __init__(self, group: TransferGroup, rank_offset: int) -> None:
        super().__init__(daemon=True)
        self._group = group
        self._rank_offset = rank_offset
        self.pieces: list[TransferPiece] = []
        self.told = threading.Event()
        self.received: Received = {}

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Keep what vLLM would load."""
        self.received |= {name: as_array(weight) for name, weight in weights}

    def run(self) -> None:
        from topd_ray.engines.vllm_transfer import GlooTransferEngine, init_info

        config: Any = SimpleNamespace(
            parallel_config=SimpleNamespace(rank=0), model_config=None
        )
        engine = GlooTransferEngine(None, config, torch.device("cpu"), self)
        info = init_info("gloo", self._group, self._rank_offset)
        engine.init_transfer_engine(engine.parse_init_info(info))
        assert self.told.wait(60)
        for piece in self.pieces:
            engine.update_weights(piece.update_info)


def sent_by_gloo(
    learner: LearnerActor, rank: int, num_receivers: int
) -> list[Received]:
    """Return what each receiver has of the learner's weights; on rank 0 alone.

    Every rank must call it.
    """
    listener = open_listener("") if rank == 0 else None
    group = TransferGroup(
        address="127.0.0.1",
        port=0 if listener is None else int(listener.getsockname()[1]),
        world_size=1 + num_receivers,
        buffer_bytes=BUFFER_BYTES,
    )
    receivers = [Receiver(group, 1 + index) for index in range(num_receivers)]
    if rank == 0:
        for receiver in receivers:
            receiver.start()
    learner.open_sender("gloo", group, listener=listener, timeout_s=60.0)
    piece = learner.next_piece(is_first=True)
    if rank == 0:
        assert piece is not None
        for receiver in receivers:
            receiver.pieces.append(piece)
            receiver.told.set()
    assert learner.next_piece(is_first=False) is None
    learner.close_sender()
    if rank > 0:
        return []
    for receiver in receivers:
        receiver.join(60)
        assert not receiver.is_alive()
    return [receiver.received for receiver in receivers]


def as_array(weight: torch.Tensor) -> NDArray[Any]:
    """Return a weight as it is published: bfloat16 as its bits."""
    if weight.dtype == torch.bfloat16:
        return weight.view(torch.int16).numpy().view(np.uint16).copy()
    return weight.numpy().copy()


__all__ = ["Received", "as_array", "sent_by_gloo"]
