"""The fleet of a run on nodes with GPUs that Ray only believes in.

Two nodes of four such GPUs, real actors and placement groups; the workers hold no
model and write down which devices they see.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from tests.stub_worker import FailingRank, StubWorker
from topd_ray.actors.calls import Calls
from topd_ray.actors.cluster import connected
from topd_ray.actors.fleet import WorkerClasses, open_fleet
from topd_ray.actors.nodes import node_reports
from topd_ray.actors.placement import Placement, place
from topd_ray.actors.protocols import Fleet
from topd_ray.actors.replacement import FailureBudget, Replacement
from topd_ray.actors.reservation import living_nodes, reserved
from topd_ray.actors.resources import resources_of, total_resources
from topd_ray.commands.doctor.cluster import judge_folder, judge_gpus
from topd_ray.config import Config, load_config
from topd_ray.errors import (
    ActorFailedError,
    LostNodeError,
    PlacementError,
    UserError,
)
from topd_ray.records.run_folder import RunFolder

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]
CONFIGS = Path(__file__).parents[2] / "configs"
LOCAL = CONFIGS / "local-toy.yaml"
QUICK = {"local-toy", "qwen3-30b-a3b-to-4b-4xh100-colocated", "gpu-toy"}
"""Configs that are placed by `make test`; `make chaos` places them all."""
H100 = CONFIGS / "qwen3-30b-a3b-to-4b-4xh100.yaml"
PAPER = CONFIGS / "qwen3-30b-a3b-to-4b-4xh100-colocated.yaml"
NODE = {"num_cpus": 12, "num_gpus": 4, "object_store_memory": 100_000_000}
DEADLINE_S = 120
"""An actor starts in two seconds, but not on a machine that others keep busy."""
STUBS = WorkerClasses(
    rollout=StubWorker, teacher=StubWorker, prober=StubWorker, learner=StubWorker
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    found = Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False}
    )
    found.add_node(**NODE)
    ray.init(found.address, log_to_driver=False, logging_level="warning")
    yield found
    ray.shutdown()
    found.shutdown()


def shipped() -> list[tuple[str, Config]]:
    """Shipped configs: the toy world's, and those whose GPUs want different things."""
    found = {}
    files = [LOCAL, *sorted(CONFIGS.glob("*.yaml"))]
    for file in files:
        config = load_config(file)
        if file == LOCAL or total_resources(config)["GPU"]:
            wanted = (str(resources_of(config)), config.cluster.layout)
            found.setdefault(wanted, (file.stem, config))
    return list(found.values())


def start(
    config: Config,
    folder: Path,
    then: Callable[[Fleet], Any] | None = None,
    *,
    workers: WorkerClasses = STUBS,
) -> None:
    """Open the fleet of a config, and do something with it."""

    async def go() -> None:
        budget = FailureBudget(1, window_steps=1)
        async with open_fleet(
            config,
            RunFolder(folder),
            Calls(start_deadline_s=DEADLINE_S, call_deadline_s=DEADLINE_S),
            Replacement(budget, lambda *_: None),
            total_steps=1,
            workers=workers,
        ) as fleet:
            if then is not None:
                await then(fleet)

    asyncio.run(go())


def seen_by(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        file.name.removesuffix(".log"): json.loads(file.read_text())
        for file in (folder / "logs").iterdir()
    }


def devices(seen: dict[str, Any]) -> list[str]:
    return [gpu for gpu in seen["gpus"].split(",") if gpu]


def assert_as_planned(placement: Placement, seen: dict[str, dict[str, Any]]) -> None:
    """Node by node, each GPU of the placement is one of Ray's, for every actor."""
    assert sorted(seen) == sorted(actor.name for actor in placement.actors)
    names: dict[tuple[int, int], str] = {}
    for actor in placement.actors:
        of_actor = seen[actor.name]
        if actor.gpus:
            assert of_actor["node"] == placement.nodes[actor.node].name
        assert len(devices(of_actor)) == len(actor.gpus)
        for gpu, name in zip(actor.gpus, devices(of_actor), strict=True):
            assert names.setdefault((actor.node, gpu), name) == name
    for node in range(len(placement.nodes)):
        on_node = [name for (index, _), name in names.items() if index == node]
        assert len(set(on_node)) == len(on_node)


def assert_nothing_else_is_held(*, gpus: int = 0, timeout_s: float = 60) -> None:
    """Wait until Ray has all GPUs again, but for those that the test itself holds."""

    def free() -> bool:
        available = ray.available_resources()
        whole = ray.cluster_resources()
        return (
            available.get("GPU", 0) == whole["GPU"] - gpus
            # Not equal: the actor of a test may hold a CPU too.
            and available.get("CPU", 0) >= whole["CPU"] - gpus
        )

    ends_s = time.monotonic() + timeout_s
    while not free():
        assert time.monotonic() < ends_s, ray.available_resources()
        time.sleep(0.1)
    states = {group["state"] for group in placement_group_table().values()}
    assert states <= {"REMOVED"}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            config, id=name, marks=[] if name in QUICK else [pytest.mark.chaos]
        )
        for name, config in shipped()
    ],
)
def test_every_actor_of_a_shipped_config_sees_the_devices_of_its_placement(
    config: Config, cluster: Cluster, tmp_path: Path
) -> None:
    del cluster
    placement = place(config, living_nodes(), where="here")
    start(config, tmp_path)
    assert_as_planned(placement, seen_by(tmp_path))
    assert_nothing_else_is_held()


@pytest.mark.parametrize("file", [LOCAL, PAPER], ids=lambda file: file.stem)
def test_a_shipped_config_is_placed_within_half_a_minute(
    file: Path, cluster: Cluster
) -> None:
    """Its GPUs are held and known then; what an actor loads comes on top."""
    del cluster
    config = load_config(file)

    async def held() -> int:
        calls = Calls(start_deadline_s=DEADLINE_S, call_deadline_s=DEADLINE_S)
        async with reserved(config, calls) as reservation:
            return len(reservation.gpu_ids)

    began_s = time.monotonic()
    num_gpus = asyncio.run(held())
    assert time.monotonic() - began_s < 30
    assert num_gpus == place(config, living_nodes(), where="here").num_gpus


def test_the_doctor_asks_every_node_for_its_gpus_and_for_the_folder_of_the_runs(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Ray was told of four GPUs a node, and the driver of neither lists any."""
    del cluster
    reports = node_reports(tmp_path)
    assert [(r.gpus, r.devices, r.sees_folder) for r in reports] == [(4, 0, True)] * 2
    assert list(tmp_path.iterdir()) == []
    found = judge_gpus(reports)
    assert found.verdict == "fails"
    assert found.seen.count("4 by Ray, 0 by nvidia-smi") == 2
    assert judge_folder(reports, tmp_path).seen.endswith("same folder on 2 nodes")


def test_the_papers_layout_shares_all_gpus_and_an_engine_comes_back_to_its_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    del cluster
    config = load_config(PAPER)
    seen: dict[str, dict[str, Any]] = {}

    async def kill_one(fleet: Fleet) -> None:
        seen.update(seen_by(tmp_path))
        os.kill(seen["rollout[1]"]["pid"], signal.SIGKILL)
        await fleet.rollouts[1].pin(0)

    start(config, tmp_path, kill_one)
    assert_as_planned(place(config, living_nodes(), where="here"), seen)
    assert devices(seen["teacher[0]"]) == ["0", "1", "2", "3"]
    assert devices(seen["rollout[1]"]) == ["2", "3"]
    assert [devices(seen[f"learner[{rank}]"]) for rank in range(4)] == [
        ["0"],
        ["1"],
        ["2"],
        ["3"],
    ]
    # An empty value, not a missing one: that would show every GPU.
    assert seen["prober[0]"]["gpus"] == ""
    engines = [one["at_s"] for name, one in seen.items() if "learner" not in name]
    ranks = [one["at_s"] for name, one in seen.items() if "learner" in name]
    assert max(engines) < min(ranks)
    successor = seen_by(tmp_path)["rollout[1]"]
    assert successor["pid"] != seen["rollout[1]"]["pid"]
    assert devices(successor) == ["2", "3"]
    assert successor["node"] == seen["rollout[1]"]["node"]


def test_a_failed_start_leaves_no_actor_and_holds_no_gpu(
    cluster: Cluster, tmp_path: Path
) -> None:
    del cluster
    stubs = WorkerClasses(
        rollout=StubWorker, teacher=StubWorker, prober=StubWorker, learner=FailingRank
    )
    with pytest.raises(ActorFailedError, match="no room on the card"):
        start(load_config(H100), tmp_path, workers=stubs)
    pids = [one["pid"] for one in seen_by(tmp_path).values()]
    assert len(pids) == 5  # all but the rank that failed
    assert_nothing_else_is_held()
    ends_s = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < ends_s
        time.sleep(0.1)


def test_a_run_takes_the_node_that_is_free_and_names_gpus_that_others_hold(
    cluster: Cluster, tmp_path: Path
) -> None:
    del cluster
    whole_node = ("teacher.engine.gpus=4", "teacher.engine.tensor_parallel=4")
    config = load_config(LOCAL, (*whole_node, "cluster.start_deadline_s=1"))
    held = ray.remote(num_gpus=4)(StubWorker)
    other_jobs = [held.remote(0, log=tmp_path / "first" / "job.log")]
    ray.get(other_jobs[0].ready.remote())
    start(config, tmp_path / "run")
    node_of_job = json.loads((tmp_path / "first" / "job.log").read_text())["node"]
    assert seen_by(tmp_path / "run")["teacher[0]"]["node"] != node_of_job
    assert_nothing_else_is_held(gpus=4)
    other_jobs.append(held.remote(0, log=tmp_path / "second" / "job.log"))
    ray.get(other_jobs[1].ready.remote())
    with pytest.raises(PlacementError, match=r"not free within 1 s .*: 0 GPUs and"):
        start(config, tmp_path / "refused")
    for job in other_jobs:
        ray.kill(job)
    assert_nothing_else_is_held()


def test_a_store_larger_than_the_shared_memory_is_a_mistake_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init(**_: object) -> None:
        raise ValueError("The configured object store size exceeds /dev/shm size")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    config = load_config(H100, ["cluster.object_store_gib=64"])
    with (
        pytest.raises(UserError, match=r"exceeds /dev/shm.*object_store_gib=64 must"),
        connected(config),
    ):
        pass


def test_a_node_that_goes_away_with_its_gpus_ends_the_session(
    cluster: Cluster, tmp_path: Path
) -> None:
    whole_nodes = [
        f"{kind}.engine.{field}={value}"
        for kind in ("rollout", "teacher")
        for field, value in {"gpus": 4, "tensor_parallel": 4}.items()
    ]
    config = load_config(LOCAL, whole_nodes)
    (node,) = cluster.worker_nodes

    async def lose_the_node(fleet: Fleet) -> None:
        seen = seen_by(tmp_path)
        engines = {"rollout[0]": fleet.rollouts[0], "teacher[0]": fleet.teachers[0]}
        (lost,) = (
            engine
            for name, engine in engines.items()
            if seen[name]["node"] == node.node_id
        )
        cluster.remove_node(node, allow_graceful=False)
        # Until Ray knows, the actors on the node still answer.
        ends_s = time.monotonic() + DEADLINE_S
        while any(living.name == node.node_id for living in living_nodes()):
            assert time.monotonic() < ends_s
            await asyncio.sleep(0.1)
        await lost.pin(0)

    with pytest.raises(LostNodeError, match="is gone; the run is placed anew"):
        start(config, tmp_path, lose_the_node)
    # The next session finds too little, and says so.
    with pytest.raises(PlacementError, match=r"asks for 8 GPUs in all, .* has 4;"):
        start(config, tmp_path)
