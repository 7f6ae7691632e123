"""Placement -> what Ray is told about each actor, and the GPUs that are held for them.

Ray gives an actor whole GPUs or a share of one, and packs as it likes. Here a placement
group holds all GPUs of the run, one bundle a node, and a probe task in each bundle says
which they are. The actors themselves ask Ray for no GPU: they run inside the bundle of
their node, and CUDA_VISIBLE_DEVICES names theirs. So several actors share a GPU, a
tensor-parallel engine among them, and no other job is given it.
"""

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from topd_ray.actors.calls import Calls, all_of
from topd_ray.actors.placement import (
    ClusterNode,
    PlacedActor,
    Placement,
    cluster_name,
    place,
)
from topd_ray.config import Config
from topd_ray.errors import LostNodeError, PlacementError

_POLL_S = 0.1
_NODE_ID = "ray.io/node-id"
"""Ray's own label of a node."""


def living_nodes() -> list[ClusterNode]:
    """Return the nodes of the cluster, those of one address beside one another."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    nodes.sort(key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))
    return [
        ClusterNode(
            name=node["NodeID"],
            gpus=int(node["Resources"].get("GPU", 0)),
            cpus=node["Resources"].get("CPU", 0.0),
        )
        for node in nodes
    ]


def free_nodes() -> list[ClusterNode]:
    """Return the living nodes with what no actor or job holds of them."""
    # Ray's public functions give the sum over all nodes only.
    state: Any = importlib.import_module("ray._private.state")
    free = state.available_resources_per_node()
    return [
        ClusterNode(
            name=node.name,
            gpus=int(free.get(node.name, {}).get("GPU", 0)),
            cpus=free.get(node.name, {}).get("CPU", 0.0),
        )
        for node in living_nodes()
    ]


@dataclass(frozen=True, slots=True)
class Reservation:
    """The nodes and GPUs that are held for the actors of a run."""

    placement: Placement
    group: PlacementGroup | None
    """None where no actor has a GPU."""
    gpu_ids: Mapping[tuple[int, int], str]
    """Node and GPU of the placement -> what CUDA_VISIBLE_DEVICES calls it there."""

    def options(self, name: str) -> dict[str, Any]:
        """Return Ray's options for an actor, the same for each of its successors.

        Raises LostNodeError where the node of its GPUs is gone.
        """
        actor = self.placement.of(name)
        node = self.placement.nodes[actor.node].name
        strategy: PlacementGroupSchedulingStrategy | NodeAffinitySchedulingStrategy
        if actor.gpus:
            self._refuse_lost(actor, node)
            strategy = PlacementGroupSchedulingStrategy(
                self.group, placement_group_bundle_index=self._bundle_of(actor)
            )
        else:
            # Nothing is held for it there, so another node will do for a successor.
            strategy = NodeAffinitySchedulingStrategy(node, soft=True)
        # An empty value hides all GPUs: without it Ray hides none, and an actor on the
        # CPU would open a context on the first GPU, which others have.
        visible = ",".join(self.gpu_ids[actor.node, gpu] for gpu in actor.gpus)
        return {
            "num_cpus": actor.cpus,
            "num_gpus": 0,
            "scheduling_strategy": strategy,
            "runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": visible}},
        }

    def _bundle_of(self, actor: PlacedActor) -> int:
        return [bundle.node for bundle in self.placement.bundles].index(actor.node)

    def _refuse_lost(self, actor: PlacedActor, node: str) -> None:
        if all(living.name != node for living in living_nodes()):
            raise LostNodeError(
                f"{actor.name} had its GPUs on node {node}, which is gone; the run is"
                " placed anew on the nodes that are left"
            )


@asynccontextmanager
async def reserved(config: Config, calls: Calls) -> AsyncIterator[Reservation]:
    """Hold the GPUs of a run until the end of the block.

    Raises PlacementError where an actor has no place, or where others hold the GPUs for
    longer than `cluster.start_deadline_s`.
    """
    where = cluster_name(config.cluster)
    try:
        placement = place(config, free_nodes(), where=where)
    except PlacementError:  # what others hold may become free
        placement = place(config, living_nodes(), where=where)
    if not placement.bundles:
        yield Reservation(placement, None, {})
        return
    group = _group_of(placement)
    try:
        await _created(group, config.cluster.start_deadline_s, placement)
        gpu_ids = await _gpu_ids(group, placement, calls)
        yield Reservation(placement, group, gpu_ids)
    finally:
        remove_placement_group(group)


def _group_of(placement: Placement) -> PlacementGroup:
    bundles = placement.bundles
    return placement_group(
        [
            {"GPU": float(len(bundle.gpus))}
            | ({"CPU": bundle.cpus} if bundle.cpus else {})
            for bundle in bundles
        ],
        strategy="PACK",
        # Each bundle to the node that the placement has chosen.
        bundle_label_selector=[
            {_NODE_ID: placement.nodes[bundle.node].name} for bundle in bundles
        ],
    )


async def _created(
    group: PlacementGroup, deadline_s: float, placement: Placement
) -> None:
    began_s = time.monotonic()
    while placement_group_table(group)["state"] != "CREATED":
        if time.monotonic() - began_s > deadline_s:
            free = ray.available_resources()
            raise PlacementError(
                f"the {placement.num_gpus} GPUs of the run were not free within"
                f" {deadline_s:g} s (cluster.start_deadline_s): {free.get('GPU', 0):g}"
                f" GPUs and {free.get('CPU', 0):g} CPUs are; end the jobs that hold"
                " the others (`ray status` counts them), or wait for them"
            )
        await asyncio.sleep(_POLL_S)


async def _gpu_ids(
    group: PlacementGroup, placement: Placement, calls: Calls
) -> dict[tuple[int, int], str]:
    """Return which GPUs each bundle was given, as seen by a task inside it."""
    seen = await all_of(
        [
            calls.start(
                f"node {placement.nodes[bundle.node].name}",
                "the ids of its GPUs",
                ray.remote(num_cpus=0, num_gpus=len(bundle.gpus))(_own_gpus)
                .options(
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        group, placement_group_bundle_index=index
                    )
                )
                .remote(),
            )
            for index, bundle in enumerate(placement.bundles)
        ]
    )
    return {
        (bundle.node, gpu): gpu_id
        for bundle, gpu_ids in zip(placement.bundles, seen, strict=True)
        for gpu, gpu_id in zip(bundle.gpus, gpu_ids, strict=True)
    }


def _own_gpus() -> list[str]:
    return sorted(map(str, ray.get_gpu_ids()), key=lambda gpu: (len(gpu), gpu))
