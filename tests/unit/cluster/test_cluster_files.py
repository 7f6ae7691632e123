"""The files of cluster/ against the schemas of the tools that read them."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.runs import ROOT
from topd_ray.config import load_config

CLUSTER = ROOT / "cluster"
SCHEMA = json.loads(Path(__file__).with_name("rayjob-v1.schema.json").read_text())


def text(name: str) -> str:
    return (CLUSTER / name).read_text()


@pytest.fixture
def rayjob() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text("kuberay-rayjob.yaml"))
    return loaded


def complaints(job: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(job)]


def test_the_rayjob_is_one_of_kuberays(rayjob):
    assert complaints(rayjob) == []


def test_an_unknown_field_of_a_rayjob_is_told(rayjob):
    rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 1
    rayjob["spec"]["backoffLimit"] = "two"
    (unknown, wrong) = sorted(complaints(rayjob))
    assert "'two' is not of type 'integer'" in unknown + wrong
    assert "'replica' was unexpected" in unknown + wrong


def test_the_rayjob_goes_on_where_it_was_and_writes_where_every_pod_sees_it(rayjob):
    spec = rayjob["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:3] == ["topd", "train", "--resume"]
    config = ROOT / Path(words[3]).relative_to("/topd_ray")
    loaded = load_config(config, words[4:])
    assert loaded.run.root.startswith("/shared/")
    assert loaded.prompts.path.startswith("/shared/")
    assert spec["backoffLimit"] > 0
    assert spec["ttlSecondsAfterFinished"] > 0
    pods = [spec["rayClusterSpec"]["headGroupSpec"]]
    pods += spec["rayClusterSpec"]["workerGroupSpecs"]
    for pod in pods:
        (container,) = pod["template"]["spec"]["containers"]
        assert {"name": "HF_HOME", "value": "/shared/huggingface"} in container["env"]
        assert "/shared" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_a_rayjobs_workers_have_the_gpus_and_the_shared_memory_of_its_config(rayjob):
    config = load_config(ROOT / "configs" / "qwen3-30b-a3b-to-4b-4xh100.yaml")
    (group,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    spec = group["template"]["spec"]
    limits = spec["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) * group["replicas"] == 4
    sizes = [v["emptyDir"]["sizeLimit"] for v in spec["volumes"] if "emptyDir" in v]
    assert [int(size.removesuffix("Gi")) for size in sizes] == [128]
    assert config.cluster.object_store_gib + 10 < 128


def test_the_ray_up_file_is_one_of_rays(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.autoscaler._private.util import prepare_config, validate_config

    values = yaml.safe_load(text("ray-cluster.yaml"))
    validate_config(prepare_config(values))
    broken = {**values, "max_worker": 1}
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(broken)


def test_the_head_of_ray_up_starts_its_workers_with_many_files():
    values = yaml.safe_load(text("ray-cluster.yaml"))
    start = values["head_start_ray_commands"][-1]
    # Without it Ray's head says that it will not launch any workers.
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    for command in (start, values["worker_start_ray_commands"][-1]):
        assert command.startswith("ulimit -n 65536 && ")
        assert "RAY_AUTH_MODE=token" in command
        assert "HF_HOME=/shared" in command


def test_the_image_has_what_triton_and_kuberay_need():
    dockerfile = text("Dockerfile").replace("\\\n", " ")
    base = re.search(
        r"^FROM nvidia/cuda:(\d+)\.\S+-devel-\S+$", dockerfile, re.MULTILINE
    )
    assert base is not None
    lock = (ROOT / "cluster" / "locks" / "gpu.txt").read_text()
    cuda = re.search(r"^cuda-toolkit==(\d+)\.", lock, re.MULTILINE)
    assert cuda is not None
    assert base[1] == cuda[1]
    installs = re.search(r"apt-get install (.*?)&&", dockerfile, re.DOTALL)
    assert installs is not None
    packages = set(installs[1].split())
    assert packages >= {"build-essential", "python3-dev", "python3-venv", "git"}
    assert (
        "uv pip sync --python .venv/bin/python --no-cache cluster/locks/gpu.txt"
        in dockerfile
    )
    assert re.search(r"ln -s /topd_ray/\.venv/bin/ray .*/usr/local/bin", dockerfile)
    last = dockerfile.strip().splitlines()[-1]
    assert last.startswith("RUN ")
    assert last.endswith(" topd doctor --no-gpu")


def test_the_slurm_job_leaves_time_for_a_step_and_its_checkpoint():
    script = text("slurm.sbatch")
    signal = re.search(r"^#SBATCH --signal=B:USR1@(\d+)$", script, re.MULTILINE)
    assert signal is not None
    for file in (ROOT / "configs").glob("*xh100*.yaml"):
        assert load_config(file).cluster.grace_s + 60 <= int(signal[1]), file.name
