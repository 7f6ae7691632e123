"""Config and nodes of a cluster -> placement: which actor is on which node and GPUs.

Pure arithmetic, so that `topd check` draws the same map that a run is started by. Ray
alone would not do: it fills GPUs in the order of submission, knows no group of GPUs
that actors share, and waits for ever where an actor fits nowhere.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from topd_ray.actors.resources import ActorResources, resources_of, total_resources
from topd_ray.config import ClusterConfig, Config
from topd_ray.errors import PlacementError

_MOST_ACTORS = 1_000
"""More is a slip of the keyboard, and would take minutes to place."""
_SLACK = 1e-6
"""What sums of shares such as 0.35 + 0.65 may be off."""
_LISTED = 8
"""GPUs or nodes that an error lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNode:
    """A machine, as far as placement needs it."""

    name: str
    """Ray's id of the node, or `node 0` of a cluster that is only assumed."""
    gpus: int
    cpus: float = math.inf
    """Logical CPUs; infinite where they are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedActor:
    """Where one actor is.

    Example: PlacedActor(name="rollout[1]", node=0, gpus=(2, 3), share=1.0, cpus=1.0),
    an engine with `tensor_parallel: 2`.
    """

    name: str
    node: int
    """Index of its node."""
    gpus: tuple[int, ...]
    """Indices of its GPUs within the node; none: it computes on the CPU."""
    share: float
    """Of each of its GPUs, by `cluster.layout: manual`."""
    cpus: float

    @property
    def kind(self) -> str:
        """Return `rollout`, `teacher`, `prober` or `learner`."""
        return self.name.partition("[")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBundle:
    """The GPUs of one node that are held for a run, and the CPUs of their actors."""

    node: int
    gpus: tuple[int, ...]
    cpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Every actor of a run on a node."""

    nodes: tuple[ClusterNode, ...]
    actors: tuple[PlacedActor, ...]
    """Learner ranks, rollout engines, teachers, probe workers; each kind in order."""

    def of(self, name: str) -> PlacedActor:
        """Return the actor of this name."""
        return next(actor for actor in self.actors if actor.name == name)

    def on(self, node: int, gpu: int) -> list[PlacedActor]:
        """Return the actors on one GPU."""
        return [a for a in self.actors if a.node == node and gpu in a.gpus]

    @property
    def bundles(self) -> tuple[NodeBundle, ...]:
        """Return what is held on each node with a GPU in use, in order."""
        return tuple(
            NodeBundle(
                node=node,
                gpus=tuple(sorted({gpu for a in actors for gpu in a.gpus})),
                cpus=sum(actor.cpus for actor in actors),
            )
            for node in range(len(self.nodes))
            if (actors := [a for a in self.actors if a.node == node and a.gpus])
        )

    @property
    def num_gpus(self) -> int:
        """Return the number of GPUs in use."""
        return sum(len(bundle.gpus) for bundle in self.bundles)

    @property
    def learners_share(self) -> bool:
        """Whether a learner rank has a GPU together with an engine."""
        return any(
            len(self.on(actor.node, gpu)) > 1
            for actor in self.actors
            if actor.kind == "learner"
            for gpu in actor.gpus
        )


def place(config: Config, nodes: Sequence[ClusterNode], *, where: str) -> Placement:
    """Return the placement of a config's actors.

    Args:
        config: The run's config.
        nodes: Of the cluster, in the order in which they are filled.
        where: The cluster's name in errors, e.g. `this machine`.

    Raises:
        PlacementError: An actor fits no node, with what it needs and what is left.
    """
    resources = resources_of(config)
    num_actors = sum(kind.count for kind in resources.values())
    if num_actors > _MOST_ACTORS:
        raise PlacementError(
            f"the config asks for {num_actors:,} actors, and at most {_MOST_ACTORS:,}"
            " can be placed; lower the number of engines, workers and ranks"
        )
    _refuse_more_than_there_is(config, nodes, where)
    largest = max(node.gpus for node in nodes)
    demands = [
        _demand(f"{name}[{index}]", kind)
        for name, kind in resources.items()
        for index in range(kind.count)
    ]
    for demand in demands:
        if demand.num_gpus > largest:
            raise PlacementError(
                f"{demand}, and the largest node has {largest}; lower its"
                " tensor_parallel, or take larger nodes (`topd check` assumes"
                " cluster.gpus_per_node)"
            )
    is_colocated = config.cluster.layout == "colocated"
    ordered = _in_order(demands, is_colocated=is_colocated)
    try:
        placed = _Board(nodes, is_colocated=is_colocated).all_of(ordered, _spread)
    except PlacementError:
        # An even spread can leave holes that are too small; a tight packing has fewer.
        placed = _Board(nodes, is_colocated=is_colocated).all_of(ordered, _tight)
    actors = tuple(placed[demand.name] for demand in demands)
    return Placement(nodes=tuple(nodes), actors=actors)


def assumed_placement(config: Config) -> Placement:
    """Return the placement on as many nodes of `cluster.gpus_per_node` as it takes.

    The CPUs of such nodes are not known, so none runs out. Raises PlacementError where
    an actor fits no node.
    """
    per_node = config.cluster.gpus_per_node
    most = sum(
        kind.count * math.ceil(kind.gpus) for kind in resources_of(config).values()
    )
    # Groups of GPUs leave less than half of a node empty, except in the last.
    num_nodes = min(2 * -(-most // per_node) + 1, _MOST_ACTORS)
    nodes = [
        ClusterNode(name=f"node {index}", gpus=per_node) for index in range(num_nodes)
    ]
    placement = place(config, nodes, where=f"a cluster of {num_nodes:,} nodes")
    last = max(actor.node for actor in placement.actors)
    return Placement(nodes=tuple(nodes[: last + 1]), actors=placement.actors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demand:
    """What one actor needs."""

    name: str
    kind: str
    num_gpus: int
    share: float
    cpus: float

    def __str__(self) -> str:
        if self.num_gpus == 0:
            return f"{self.name} needs {self.cpus:g} CPUs"
        if self.num_gpus > 1:
            return f"{self.name} needs {self.num_gpus} GPUs of one node"
        gpu = "a GPU" if self.share == 1 else f"{self.share:g} of a GPU"
        return f"{self.name} needs {gpu} and {self.cpus:g} CPUs"


def _demand(name: str, kind: ActorResources) -> _Demand:
    return _Demand(
        name=name,
        kind=name.partition("[")[0],
        num_gpus=math.ceil(kind.gpus),
        share=kind.gpus if 0 < kind.gpus < 1 else float(kind.gpus > 0),
        cpus=kind.cpus,
    )


def _in_order(demands: Sequence[_Demand], *, is_colocated: bool) -> list[_Demand]:
    """Return the order of placing: the larger before what fits into its holes.

    Where all kinds share the GPUs, the kind that takes most of them comes first, and
    the others go to GPUs that are in use.
    """
    totals = Counter[str]()
    if is_colocated:
        for demand in demands:
            totals[demand.kind] += demand.num_gpus
    return sorted(
        demands,
        key=lambda d: (-totals[d.kind], -d.num_gpus, -d.share, -d.cpus),
    )


@dataclass(slots=True)
class _Gpu:
    node: int
    index: int
    left: float = 1.0
    occupants: list[_Demand] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    def take(self, demand: _Demand) -> None:
        self.left -= demand.share
        self.occupants.append(demand)
        self.kinds.add(demand.kind)


_Preference = Callable[[_Gpu], tuple[float, ...]]


def _spread(gpu: _Gpu) -> tuple[float, ...]:
    """Prefer a GPU in use with the fewest actors, so that each rank gets an engine."""
    return (not gpu.occupants, len(gpu.occupants), gpu.node, gpu.index)


def _tight(gpu: _Gpu) -> tuple[float, ...]:
    """Prefer the GPU with the least that is left."""
    return (gpu.left, gpu.node, gpu.index)


class _Board:
    """The nodes while they are filled."""

    def __init__(self, nodes: Sequence[ClusterNode], *, is_colocated: bool) -> None:
        self._nodes = nodes
        self._is_colocated = is_colocated
        self._cpus = [node.cpus for node in nodes]
        self._used: set[int] = set()
        self._gpus = [
            [_Gpu(index, gpu) for gpu in range(node.gpus)]
            for index, node in enumerate(nodes)
        ]

    def all_of(
        self, demands: Sequence[_Demand], preference: _Preference
    ) -> dict[str, PlacedActor]:
        """Place one after the other; return the actors by name."""
        return {demand.name: self._place(demand, preference) for demand in demands}

    def _place(self, demand: _Demand, preference: _Preference) -> PlacedActor:
        gpus = self._gpus_for(demand, preference) if demand.num_gpus else []
        node = gpus[0].node if gpus else self._node_for(demand)
        self._cpus[node] -= demand.cpus
        for gpu in gpus:
            gpu.take(demand)
            self._used.add(node)
        return PlacedActor(
            name=demand.name,
            node=node,
            gpus=tuple(sorted(gpu.index for gpu in gpus)),
            share=demand.share,
            cpus=demand.cpus,
        )

    def _gpus_for(self, demand: _Demand, preference: _Preference) -> list[_Gpu]:
        options = [
            sorted(roomy, key=preference)
            for node, gpus in enumerate(self._gpus)
            if self._cpus[node] >= demand.cpus - _SLACK
            and len(roomy := [g for g in gpus if self._has_room(g, demand)])
            >= demand.num_gpus
        ]
        if not options:
            raise PlacementError(self._refusal(demand))
        if demand.share < 1:
            return min((gpus[:1] for gpus in options), key=lambda g: preference(g[0]))
        # The node with the fewest such GPUs, which keeps the others whole for groups.
        return min(options, key=len)[: demand.num_gpus]

    def _has_room(self, gpu: _Gpu, demand: _Demand) -> bool:
        if self._is_colocated:
            return demand.kind not in gpu.kinds
        # NCCL refuses two ranks of one group on one GPU.
        is_second_rank = demand.kind == "learner" and "learner" in gpu.kinds
        return gpu.left >= demand.share - _SLACK and not is_second_rank

    def _node_for(self, demand: _Demand) -> int:
        """Return the node of an actor without GPU: first those whose GPUs are used."""
        options = [
            node for node, cpus in enumerate(self._cpus) if cpus >= demand.cpus - _SLACK
        ]
        if not options:
            raise PlacementError(self._refusal(demand))
        return min(options, key=lambda node: (node not in self._used, node))

    def _refusal(self, demand: _Demand) -> str:
        rule = ""
        if self._is_colocated and demand.num_gpus:
            rule = f", each without another {demand.kind}"
        elif demand.kind == "learner" and demand.num_gpus:
            rule = " that no other rank has"
        left = list(self._left(demand))
        more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
        return (
            f"{demand}{rule}, and no node has that left:"
            f" {'; '.join(left[:_LISTED])}{more}; lower the number of engines and"
            " ranks or what they take, choose another cluster.layout, or add nodes"
        )

    def _left(self, demand: _Demand) -> Iterator[str]:
        for node, cpus, gpus in zip(self._nodes, self._cpus, self._gpus, strict=True):
            parts = []
            if math.isfinite(cpus):
                parts.append(f"{cpus:g} of {node.cpus:g} CPUs left")
            if demand.num_gpus:
                taken = "".join(_taken(gpu) for gpu in gpus if gpu.occupants)
                parts.append(f"{len(gpus)} GPUs{taken}")
            yield f"{node.name} has {', '.join(parts)}"


def _taken(gpu: _Gpu) -> str:
    names = " + ".join(
        occupant.name + (f" {occupant.share:g}" if occupant.share < 1 else "")
        for occupant in gpu.occupants
    )
    return f", GPU {gpu.index} with {names}"


def _refuse_more_than_there_is(
    config: Config, nodes: Sequence[ClusterNode], where: str
) -> None:
    available = {
        "GPU": float(sum(node.gpus for node in nodes)),
        "CPU": sum(node.cpus for node in nodes),
    }
    for kind, wanted in total_resources(config).items():
        if wanted > available[kind] + _SLACK:
            raise PlacementError(
                f"the config asks for {wanted:g} {kind}s in all, {where} has"
                f" {available[kind]:g}; lower the `{kind.lower()}s` fields or the"
                " number of engines, workers and ranks (`topd check` lists them)"
            )


def cluster_name(cluster: ClusterConfig) -> str:
    """Return how errors call a run's cluster."""
    return cluster.address or "this machine"


__all__ = [
    "ClusterNode",
    "NodeBundle",
    "PlacedActor",
    "Placement",
    "assumed_placement",
    "cluster_name",
    "place",
]
