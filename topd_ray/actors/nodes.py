"""What the nodes of a running cluster have, as a task on each of them sees it."""

import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from topd_ray.actors.cluster import joined
from topd_ray.errors import TopdError, first_line

_ANSWER_S = 30.0
_DRIVER_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What one node has.

    Example: NodeReport(address="10.0.0.7", gpus=8, devices=8, sees_folder=True).
    """

    address: str
    gpus: int
    """As Ray counts them."""
    devices: int
    """As the driver of the node's GPUs lists them."""
    sees_folder: bool
    """Whether a file that the caller wrote is in the folder there."""


def ask_nodes(address: str, folder: Path, env: Mapping[str, str]) -> list[NodeReport]:
    """Join a cluster, ask every living node of it, and leave it.

    Args:
        address: Of the cluster.
        folder: An existing folder, in which a file is written for the while.
        env: Environment variables of the tasks.

    Raises:
        UserError: There is no cluster.
        TopdError: A node does not answer.
    """
    with joined(address, env):
        return node_reports(folder)


def node_reports(folder: Path) -> list[NodeReport]:
    """Ask every living node of the joined cluster, by tasks that take no resources.

    Raises TopdError where a node does not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0)(_look)
    with _file_in(folder) as (path, content):
        answers = [
            look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(
                    node["NodeID"], soft=False
                )
            ).remote(path, content)
            for node in nodes
        ]
        try:
            seen = ray.get(answers, timeout=_ANSWER_S)
        except GetTimeoutError:
            raise TopdError(f"a node did not answer within {_ANSWER_S:g} s") from None
        except RayError as error:
            raise TopdError(f"a node could not look: {first_line(error)}") from None
    return [
        NodeReport(
            address=node["NodeManagerAddress"],
            gpus=int(node["Resources"].get("GPU", 0)),
            devices=devices,
            sees_folder=sees_folder,
        )
        for node, (devices, sees_folder) in zip(nodes, seen, strict=True)
    ]


@contextmanager
def _file_in(folder: Path) -> Iterator[tuple[Path, str]]:
    content = secrets.token_hex(16)
    path = folder / f".topd-doctor-{content[:8]}"
    path.write_text(content, encoding="utf-8")
    try:
        yield path, content
    finally:
        path.unlink()


def _look(path: Path, content: str) -> tuple[int, bool]:
    """Return this node's GPUs by their driver, and whether it sees the file."""
    try:
        sees_folder = path.read_text(encoding="utf-8") == content
    except OSError:
        sees_folder = False
    return _num_devices(), sees_folder


def _num_devices() -> int:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"],
            capture_output=True,
            text=True,
            timeout=_DRIVER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


__all__ = ["NodeReport", "ask_nodes", "node_reports"]
