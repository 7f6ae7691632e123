"""Machines of a cluster that go away: `ray.cluster_utils.Cluster`, a raylet for each."""

from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.chaos.harm import DEADLINE_S, assert_same, happened, has_steps, started, wait_until
from tests.runs import Run, Setting

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that has room for two of the four actors."""
    found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    yield found
    found.shutdown()


def test_nodes_that_go_away_take_nothing_with_them(
    setting: Setting, whole: Run, cluster: Cluster, record_property: Any
) -> None:
    record_property("fault", "a node lost, with the actors and objects on it")
    run = setting.run("nodes")
    second = cluster.add_node(**NODE)
    overrides = ("run.name=nodes", f"cluster.address={cluster.address}")
    with started("train", setting.file, *overrides) as process:
        wait_until(has_steps(run, 1), process)
        third = cluster.add_node(**NODE)
        cluster.remove_node(second, allow_graceful=False)
        wait_until(has_steps(run, 3), process)
        cluster.add_node(**NODE)
        cluster.remove_node(third, allow_graceful=False)
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    events = happened(run)
    assert events.count("replaced") + events.count("went_back") >= 2
    record_property("injected", "2")
    record_property("done_again", f"{events.count('went_back')} times from a checkpoint")
    assert_same(run, whole)
    record_property("lost", "none")
