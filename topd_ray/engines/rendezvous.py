"""Where the ranks of a process group meet: a port that rank 0 holds from the start."""

import socket
from datetime import timedelta

from torch._C._distributed_c10d import Store, TCPStore

_TIMEOUT = timedelta(minutes=10)
"""Longest wait for a rank that has not come."""
_BACKLOG = 1024


def open_listener(address: str) -> socket.socket:
    """Return a socket that listens on a free port.

    It is handed over as it is: a port that is only found free and bound later may be
    taken in between.

    Args:
        address: Where it listens; `""`: on every interface.
    """
    listener = socket.socket()
    listener.bind((address, 0))
    listener.listen(_BACKLOG)
    return listener


def meet(
    address: str, port: int, *, world_size: int, listener: socket.socket | None
) -> Store:
    """Join the other ranks' store; waits until all have come.

    Args:
        address: Address of the node of rank 0.
        port: Port of rank 0's listener.
        world_size: Number of ranks.
        listener: The listener of `open_listener`, which the store takes over; rank 0's
            alone.
    """
    return TCPStore(
        address,
        port,
        world_size,
        is_master=listener is not None,
        timeout=_TIMEOUT,
        master_listen_fd=None if listener is None else listener.detach(),
    )


__all__ = ["meet", "open_listener"]
