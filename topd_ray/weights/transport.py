"""The learner's end of a direct transfer, by transport and rank."""

import socket
from collections.abc import Iterator

from topd_ray.config import Transport
from topd_ray.engines.protocols import (
    TransferGroup,
    TransferPiece,
    WeightSender,
    WeightSource,
)


def open_sender(
    transport: Transport,
    group: TransferGroup,
    *,
    rank: int,
    listener: socket.socket | None,
    timeout_s: float,
) -> WeightSender:
    """Return the learner's end of a transfer; waits until all engines have joined.

    Args:
        transport: Any but `store`, which needs no group.
        group: Where they meet.
        rank: This learner rank; rank 0 alone joins a broadcast.
        listener: The socket of the group's port, on rank 0; None on the others.
        timeout_s: Longest wait for an engine.
    """
    if rank > 0 and transport != "ipc":
        return GatheringRank()
    # vLLM takes ten seconds to import, and a rank that only gathers needs none of it.
    from topd_ray.engines import vllm_transfer

    return vllm_transfer.open_sender(
        transport, group, listener=listener, timeout_s=timeout_s
    )


class GatheringRank:
    """A learner rank above 0 in a broadcast: it takes part in gathering alone."""

    def pieces(self, source: WeightSource) -> Iterator[TransferPiece | None]:
        """Yield once, as rank 0 does, and then gather."""
        yield None
        for _ in source.tensors():
            pass

    def close(self) -> None:
        """Nothing is held."""


__all__ = ["GatheringRank", "open_sender"]
