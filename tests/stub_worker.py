"""A worker without a model: it writes down where it is and what it sees.

Every actor imports this module, so it imports nothing of the tests: that takes seconds.
"""

import json
import os
import time
from pathlib import Path
from typing import Any


class StubWorker:
    """Answers what every handle asks while it starts."""

    def __init__(self, config: object, *, log: Path, **named: object) -> None:
        del config, named
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)

    def ready(self) -> None:
        self._write()

    def clock(self) -> float:
        return time.monotonic()

    def pin(self, core: int) -> None:
        """Do nothing; a call that any handle can make."""

    def rendezvous(self) -> tuple[str, int]:
        return "", 0

    def start(self, address: str, port: int) -> None:
        del address, port
        self._write()

    def _write(self) -> None:
        import ray

        seen = {
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "node": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "at_s": time.monotonic(),
        }
        self._log.write_text(json.dumps(seen))


class FailingRank(StubWorker):
    """A learner rank that cannot start, while others can."""

    def __init__(self, config: Any, *, log: Path, rank: int, **named: object) -> None:
        super().__init__(config, log=log, **named)
        self._rank = rank

    def start(self, address: str, port: int) -> None:
        if self._rank == 1:
            raise RuntimeError("no room on the card")
        super().start(address, port)
