"""Machines of a cluster that go away: `ray.cluster_utils.Cluster`, a raylet for
each.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.chaos.harm import (
    DEADLINE_S,
    assert_same,
    below,
    command,
    happened,
    has_steps,
    kill_all,
    started,
    wait_until,
)
from tests.runs import Run, Setting

pytestmark = [pytest.mark.engines, pytest.mark.chaos, pytest.mark.timeout(600)]
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and three more nodes; each has room for two of the four actors."""
    found = Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False}
    )
    for _ in range(3):
        found.add_node(**NODE)
    yield found
    found.shutdown()


def actors(node: Any) -> list[str]:
    """What runs on a node."""
    return [name for one in below(raylet(node)) if "Worker" in (name := command(one))]


def raylet(node: Any) -> int:
    (found,) = node.all_processes["raylet"]
    return int(found.process.pid)


def lose_one(cluster: Cluster) -> list[str]:
    """A node, not the head, that has actors; raylet and workers at once; the actors."""
    node = next(one for one in cluster.worker_nodes if actors(one))
    gone = actors(node)
    kill_all(raylet(node))  # a raylet that ends alone leaves them time to answer
    cluster.remove_node(node, allow_graceful=False)
    return gone


def test_nodes_that_go_away_take_nothing_with_them(
    setting: Setting, whole: Run, cluster: Cluster, record_property: Any
) -> None:
    record_property("fault", "a node lost, with the actors and objects on it")
    run, gone = setting.run("nodes"), list[str]()
    overrides = ("run.name=nodes", f"cluster.address={cluster.address}")
    with started("train", setting.file, *overrides) as process:
        for steps in (1, 3):
            wait_until(has_steps(run, steps), process)
            gone += lose_one(cluster)
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    events = happened(run)
    assert events.count("replaced") + events.count("went_back") >= 2
    record_property(
        "injected",
        f"2, with {' and '.join(sorted(name.removeprefix('ray::') for name in gone))}",
    )
    record_property(
        "done_again", f"from a checkpoint: {events.count('went_back')} of 2"
    )
    assert_same(run, whole)
