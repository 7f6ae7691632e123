"""Checks of the nodes of a running cluster: their GPUs, and the folder of the runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from topd_ray.actors.nodes import NodeReport, ask_nodes
from topd_ray.commands.doctor.finding import Finding, not_looked_at
from topd_ray.config import Config
from topd_ray.errors import TopdError, first_line

_GPUS = "GPUs of the nodes"
_ROOT = "run.root on every node"


def check_nodes(config: Config) -> Iterator[Finding]:
    """Join the cluster of a config and ask each of its nodes; start no actor."""
    address = config.cluster.address
    root = Path(config.run.root).absolute()
    if address is None:
        yield not_looked_at(_GPUS, "without cluster.address a run has this node alone")
        return
    folder = root
    while not folder.exists():
        folder = folder.parent
    try:
        nodes = ask_nodes(address, folder, config.cluster.env)
    except (TopdError, OSError) as error:
        yield not_looked_at(_GPUS, first_line(error))
        return
    yield judge_gpus(nodes)
    yield judge_folder(nodes, folder)


def judge_gpus(nodes: Sequence[NodeReport]) -> Finding:
    """Compare the GPUs that Ray counts on each node with those of its driver."""
    wrong = [
        f"{node.address}: {node.gpus} by Ray, {node.devices} by nvidia-smi"
        for node in nodes
        if node.gpus != node.devices
    ]
    if wrong:
        return Finding(
            check=_GPUS,
            verdict="fails",
            seen="; ".join(wrong),
            way_out="`ray start` there without --num-gpus, where the driver shows them",
        )
    total = sum(node.gpus for node in nodes)
    seen = f"{total} GPUs on {len(nodes)} nodes, as many as Ray counts"
    return Finding(check=_GPUS, verdict="ok", seen=seen)


def judge_folder(nodes: Sequence[NodeReport], folder: Path) -> Finding:
    """Say which nodes have another folder, or none, in the place of run.root."""
    apart = [node.address for node in nodes if not node.sees_folder]
    if apart:
        return Finding(
            check=_ROOT,
            verdict="fails",
            seen=f"{folder} is another folder, or none, on {', '.join(apart)}",
            way_out="storage that every node mounts at the same path",
        )
    seen = f"{folder} is the same folder on {len(nodes)} nodes"
    return Finding(check=_ROOT, verdict="ok", seen=seen)


__all__ = ["check_nodes", "judge_folder", "judge_gpus"]
