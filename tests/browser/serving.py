"""A run folder that is served from a thread of the tests."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from topd_ray.page.live import LivePage, allowed_hosts, live_app

HOST = "127.0.0.1"


@contextmanager
def served(path: Path) -> Iterator[str]:
    """Serve a run's page while the block runs; yields its address."""
    with socket.create_server((HOST, 0)) as listening:
        port = listening.getsockname()[1]
        app = live_app(LivePage(path), hosts=allowed_hosts(HOST, port))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://{HOST}:{port}/"
        server.should_exit = True
        thread.join()
