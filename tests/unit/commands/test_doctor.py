"""`topd doctor`: each planted fault is named, with the way out."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.gpu_smoke import complaints, figures
from tests.runs import topd
from topd_ray.actors.nodes import NodeReport
from topd_ray.commands.doctor import gpu_work, gpus, installation, machine, run_checks
from topd_ray.commands.doctor.cluster import (
    check_nodes,
    judge_folder,
    judge_gpus,
)
from topd_ray.commands.doctor.examination import examine, print_findings
from topd_ray.commands.doctor.finding import Finding
from topd_ray.commands.doctor.probes import compare_attention, share_memory
from topd_ray.config import parse_config

LOCK = {"torch": "2.13.0", "vllm": "0.32.0", "ray": "2.58.0", "rich": "15.0.0"}
GPUS = (
    "0, NVIDIA H100 80GB HBM3, 580.95.05, 81559, 4, Disabled, 0, Not Active\n"
    "1, NVIDIA H100 80GB HBM3, 580.95.05, 81559, 4, Disabled, [N/A], Not Active\n"
)
PEERS = """\
 \tGPU0\tGPU1\t
 GPU0\tX\tOK\t
 GPU1\tOK\tX\t

Legend:
  X    = Self
"""


def plan(tmp_path: Path, **cluster: object) -> dict[str, object]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "w1 w2"}\n')
    return {
        "run": {"root": str(tmp_path / "runs")},
        "prompts": {"path": str(prompts), "max_tokens": 32},
        "teacher": {"model": "owner/big", "size_b": 0.001},
        "learner": {"model": "owner/small", "size_b": 0.001},
        "cluster": {"object_store_gib": 0.01, **cluster},
    }


# Packages and compiler


def test_the_versions_of_the_lock_pass():
    found = installation.check_packages("gpu", LOCK, {**LOCK, "torch": "2.13.0+cu130"})
    assert (found.verdict, found.seen) == (
        "ok",
        "4 at the versions of cluster/locks/gpu.txt",
    )


@pytest.mark.parametrize("version", ["0.26.0", None])
def test_another_vllm_than_the_locks_stops_a_run(version):
    found = installation.check_packages("gpu", LOCK, {**LOCK, "vllm": version})
    assert found.verdict == "fails"
    assert f"vllm {version or 'missing'} for 0.32.0" in found.seen
    assert "make setup HARDWARE=gpu" in found.way_out


def test_another_version_of_a_lesser_package_is_a_note():
    found = installation.check_packages("gpu", LOCK, {**LOCK, "rich": "13.0"})
    assert (found.verdict, found.seen) == ("note", "rich 13.0 for 15.0.0")


def test_a_package_of_an_extra_may_be_missing():
    found = installation.check_packages("gpu", LOCK, {**LOCK, "rich": None})
    assert found.verdict == "ok"


def test_a_machine_without_vllm_is_not_set_up():
    assert installation.check_packages(None, {}, {}).verdict == "fails"


def test_a_wheel_without_locks_says_that_it_could_not_look():
    assert installation.check_packages("cpu", {}, {}).verdict == "not looked at"


def test_this_environment_has_the_locks_vllm():
    kind = installation.installed_kind()
    assert kind in ("cpu", "gpu")
    pinned = installation.read_lock(installation.LOCKS / f"{kind}.txt")
    assert pinned["torch"]
    assert installation.check_torch_build("13.0", has_gpu=True).verdict == "ok"


def test_torch_for_cpus_on_a_gpu_machine_fails():
    assert installation.check_torch_build(None, has_gpu=True).verdict == "fails"
    assert installation.check_torch_build(None, has_gpu=False).verdict == "ok"


def test_torchs_cuda_version_is_read_without_an_import():
    assert installation.torch_cuda() == torch.version.cuda


def test_a_compiler_that_works_passes():
    assert installation.check_compiler(needed=True).verdict == "ok"


@pytest.mark.parametrize(("needed", "verdict"), [(True, "fails"), (False, "note")])
def test_no_compiler_is_named(needed, verdict, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = installation.check_compiler(needed=needed)
    assert (found.verdict, found.seen) == (verdict, "no gcc on PATH")


def test_missing_headers_name_their_package(tmp_path, monkeypatch):
    monkeypatch.setattr(
        installation.sysconfig, "get_paths", lambda: {"include": str(tmp_path)}
    )
    found = installation.check_compiler(needed=True)
    assert "Python.h" in found.seen
    assert "python3-dev" in found.way_out


def test_a_compiler_that_fails_is_shown(monkeypatch):
    monkeypatch.setenv("CC", "false")
    assert installation.check_compiler(needed=True).seen == "false: exit code 1"


# The machine


@pytest.mark.parametrize(
    ("free", "has_gpu", "verdict"),
    [(0.06, False, "fails"), (64, True, "note"), (64, False, "ok"), (75, True, "ok")],
)
def test_shared_memory_is_compared_with_the_object_store(free, has_gpu, verdict):
    found = machine.check_shared_memory(free, 64, has_gpu=has_gpu)
    assert found.verdict == verdict
    assert bool(found.way_out) == (verdict != "ok")


@pytest.mark.parametrize(
    ("limit", "verdict"), [(256, "fails"), (4096, "note"), (2**63 - 1, "ok")]
)
def test_open_files_are_judged(limit, verdict):
    assert machine.check_open_files(limit).verdict == verdict


def test_limits_are_those_of_this_process():
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert machine.open_files_limit() in (soft, 2**63 - 1)
    assert machine.locked_memory_limit() > 0


@pytest.mark.parametrize(
    ("limit", "devices", "verdict"),
    [(2**26, [], "ok"), (2**26, ["mlx5_0"], "fails"), (2**63 - 1, ["mlx5_0"], "ok")],
)
def test_infiniband_needs_locked_memory(limit, devices, verdict):
    assert machine.check_locked_memory(limit, devices).verdict == verdict


def test_a_taken_ray_port_is_a_note_and_a_silent_cluster_fails():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert machine.check_ray(None, port=port).verdict == "note"
        assert machine.check_ray(f"127.0.0.1:{port}").verdict == "ok"
    assert machine.check_ray(None, port=port).verdict == "ok"
    found = machine.check_ray(f"127.0.0.1:{port}")
    assert found.verdict == "fails"
    assert f"cluster.address=127.0.0.1:{port}" in found.seen
    assert machine.check_ray("auto").verdict == "not looked at"


def test_a_full_disk_fails():
    assert machine.check_disk("disk", 1.0, 2.0, "two of").verdict == "fails"
    assert machine.check_disk("disk", 2.0, 2.0, "two of").verdict == "ok"


# GPUs, by the driver's tables


def test_sound_gpus_pass():
    found = gpus.parse_gpus(GPUS)
    assert [gpu.memory_mib for gpu in found] == [81559.0, 81559.0]
    checks = (gpus.check_driver, gpus.check_memory, gpus.check_state)
    assert [check(found).verdict for check in checks] == ["ok", "ok", "ok"]
    assert gpus.check_peers(PEERS, 2).verdict == "ok"


def test_a_driver_for_cuda_12_is_refused():
    found = gpus.check_driver(gpus.parse_gpus(GPUS.replace("580.95", "570.12")))
    assert found.verdict == "fails"
    assert "driver 580 or newer" in found.way_out


def test_a_gpu_that_somebody_else_holds_is_named():
    found = gpus.check_memory(
        gpus.parse_gpus(GPUS.replace("81559, 4,", "81559, 40000,", 1))
    )
    assert (found.verdict, found.seen) == (
        "fails",
        "taken by others: GPU 0: 39.1 of 80 GiB",
    )


@pytest.mark.parametrize(
    ("old", "new", "verdict", "seen"),
    [
        ("Disabled", "Enabled", "fails", "GPU 0 is split into instances"),
        ("[N/A]", "3", "fails", "GPU 1: 3 uncorrected memory errors"),
        ("Not Active", "Active", "note", "clocks of GPU 0, 1 are held back"),
    ],
)
def test_a_gpu_in_a_bad_state_is_named(old, new, verdict, seen):
    found = gpus.check_state(gpus.parse_gpus(GPUS.replace(old, new)))
    assert found.verdict == verdict
    assert seen in found.seen


def test_gpus_that_cannot_read_each_other_are_a_note():
    found = gpus.check_peers(PEERS.replace("OK", "NS"), 2)
    assert (found.verdict, found.seen[:7]) == ("note", "1 pairs")
    assert gpus.check_peers(None, 2).verdict == "note"


def test_the_drivers_tool_is_asked(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{GPUS}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert len(gpus.ask_driver()) == 2
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpus.ask_driver() == []


# What runs on the GPUs


@pytest.mark.parametrize(
    ("count", "pairs"),
    [
        (1, []),
        (2, [(0, 1)]),
        (3, [(0, 1), (1, 2)]),
        (4, [(0, 1), (2, 3), (1, 2), (3, 0)]),
    ],
)
def test_nccl_goes_round_the_ring_and_no_gpu_is_used_twice_at_a_time(count, pairs):
    rounds = gpu_work.plan_probes(count)
    by_nccl = [[p.gpus for p in probes if p.kind == "NCCL"] for probes in rounds]
    assert [pair for pairs in by_nccl for pair in pairs] == pairs
    for probes in by_nccl:
        used = [gpu for pair in probes for gpu in pair]
        assert len(used) == len(set(used))


def test_two_processes_add_up_a_tensor():
    """By gloo what is NCCL on GPUs."""
    code = (
        "import sys; from topd_ray.commands.doctor.probes import all_reduce;"
        "print(all_reduce(int(sys.argv[1]), int(sys.argv[2]), device='cpu', mib=1))"
    )
    port = str(gpu_work._free_port())
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), port],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    speeds = [float(text) for text in said]
    assert all(speed > 0 for speed in speeds)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_compared_with_torchs_own():
    assert compare_attention(device="cpu", compiled=False, slopes=False) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_kernels_compile_and_processes_share_memory():
    assert compare_attention(device="cuda", compiled=True) < 2e-2
    share_memory(device="cuda")


def test_another_process_writes_into_shared_memory():
    share_memory(device="cpu", wait_s=200)


@pytest.mark.parametrize(
    ("code", "verdict", "seen"),
    [
        ("print('9 GB/s')", "ok", "9 GB/s"),
        ("raise SystemExit('a wrong sum')", "fails", "a wrong sum"),
        ("import os; os._exit(3)", "fails", "exit code 3"),
        ("import time; time.sleep(60)", "fails", "no answer before the deadline"),
    ],
)
def test_a_probe_is_judged_by_how_it_ends(code, verdict, seen):
    probe = gpu_work.Probe(
        check="CUDA IPC", kind="shared handles", commands=(), gpus=()
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], **pipes)
    wait_s = 1.0 if "sleep" in code else 60.0
    found = gpu_work.judge(probe, [process], time.monotonic() + wait_s)
    assert (found.verdict, found.seen) == (verdict, seen)
    assert process.poll() is not None
    assert ("--ipc=host" in found.way_out) == (verdict == "fails")


def test_a_probe_that_is_late_is_ended():
    probe = gpu_work.Probe(
        check="CUDA IPC", kind="shared handles", commands=(("sharing",),), gpus=(0,)
    )
    (found,) = gpu_work.run_probes([probe], deadline_s=0.2)
    assert (found.verdict, found.seen) == ("fails", "no answer before the deadline")


# The run


def test_a_run_root_that_cannot_be_written_fails(tmp_path):
    file = tmp_path / "file"
    file.touch()
    found = run_checks.check_run_root(file / "runs")
    assert found.verdict == "fails"
    assert run_checks.check_run_root(tmp_path / "a" / "b").verdict == "ok"
    assert list(tmp_path.iterdir()) == [file]


def test_a_model_that_cannot_be_reached_fails(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = run_checks.check_model("learner.model", "owner/small", None)
    assert found.verdict == "fails"
    assert "owner/small: no folder, not in the hub's cache" in found.seen
    odd = run_checks.check_model("learner.model", "models/no/such", None)
    assert "no hub name" in odd.seen


def test_more_gpus_than_there_are_fail(tmp_path):
    values = plan(tmp_path)
    values["rollout"] = {"engine": {"gpus": 2, "tensor_parallel": 2}}
    config = parse_config(values, source="test")
    whole = run_checks.check_placement(config, 2)
    assert (whole.verdict, whole.seen) == ("ok", "4 actors on 2 of 2 GPUs")
    found = run_checks.check_placement(config, 1)
    assert found.verdict == "fails"
    assert "this machine" in found.seen
    joined = plan(tmp_path, address="10.0.0.1:6379")
    config = parse_config(joined, source="test")
    assert run_checks.check_placement(config, 0).verdict == "not looked at"


# The nodes of a cluster


def report_of(address: str, **fields: Any) -> NodeReport:
    values: dict[str, Any] = {"gpus": 8, "devices": 8, "sees_folder": True}
    return NodeReport(address=address, **values | fields)


def test_nodes_with_all_their_gpus_and_one_folder_pass():
    nodes = [report_of("10.0.0.7"), report_of("10.0.0.8")]
    assert judge_gpus(nodes).seen == "16 GPUs on 2 nodes, as many as Ray counts"
    assert judge_folder(nodes, Path("/shared/runs")).verdict == "ok"


def test_a_node_whose_gpus_ray_does_not_count_right_is_named():
    found = judge_gpus([report_of("10.0.0.7"), report_of("10.0.0.8", devices=7)])
    assert found.verdict == "fails"
    assert found.seen == "10.0.0.8: 8 by Ray, 7 by nvidia-smi"


def test_a_node_with_another_folder_for_the_runs_is_named():
    nodes = [report_of("10.0.0.7"), report_of("10.0.0.8", sees_folder=False)]
    found = judge_folder(nodes, Path("/home/runs"))
    assert found.verdict == "fails"
    assert found.seen == "/home/runs is another folder, or none, on 10.0.0.8"


def test_a_cluster_that_cannot_be_joined_was_not_looked_at(tmp_path):
    values = plan(tmp_path, address="127.0.0.1:1")
    config = parse_config(values, source="test")
    [found] = check_nodes(config)
    assert found.verdict == "not looked at"
    assert "no Ray cluster there" in found.seen


# The command


def test_a_table_ends_with_what_would_stop_a_run(capsys):
    rows = [
        Finding(check="driver", verdict="fails", seen="570", way_out="[a] newer one"),
        Finding(check="MIG", verdict="ok", seen="off"),
    ]
    assert print_findings(rows)
    said = capsys.readouterr().out
    assert "-> [a] newer one" in said
    assert "1 of 2 checks would stop a run" in said
    assert not print_findings(rows[1:])


def test_a_cpu_machine_says_what_it_could_not_look_at(monkeypatch):
    monkeypatch.setattr(gpus, "ask_driver", list)
    rows = {found.check: found for found in examine(None, no_gpu=False)}
    assert rows["GPUs"].seen == "nvidia-smi lists none on this machine"
    assert rows["config"].verdict == "not looked at"
    assert rows["compiler, Python.h"].verdict == "ok"


def test_the_command_ends_with_code_2_where_a_run_could_not_start(tmp_path):
    values = plan(tmp_path)
    values["run"] = {"root": str(tmp_path / "prompts.jsonl" / "runs")}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values))
    done = topd("doctor", "--no-gpu", file, "cluster.address=127.0.0.1:9")
    assert done.code == 2
    assert "checks would stop a run" in done.output
    assert "run.root" in done.output
    assert "cluster.address=127.0.0.1:9: nothing answers" in done.output


def test_the_smoke_run_is_judged_by_what_it_taught(tmp_path):
    summary = {"accuracy_before": 0.34, "accuracy_after": 0.88, "steps": 1}
    metrics = {"step": 1, "loss/opd": 0.4}

    def judged(**changed):
        (tmp_path / "summary.json").write_text(json.dumps(summary | changed))
        (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
        return complaints(tmp_path)

    assert judged() == []
    assert judged(accuracy_after=0.4) == [
        "accuracy went from 34.0% to 40.0%: no training"
    ]
    assert judged(steps=2) == ["1 of 2 steps are in metrics.jsonl"]
    metrics["loss/opd"] = float("nan")
    assert judged() == ["step 1: loss nan"]


def test_the_figures_of_the_smoke_run_leave_out_its_first_step(tmp_path):
    def step(number, wall_s):
        return {
            "step": number,
            "step/wall_s": wall_s,
            "weights/update_s": 0.5,
            "rollout/num_tokens": 6000,
            "rollout/busy_s": 2.0,
            "teacher/num_tokens": 0,
            "teacher/busy_s": 0.0,
            "probe/num_tokens": 0,
            "probe/busy_s": 0.0,
            "learner/num_tokens": 6000,
            "learner/busy_s": 3.0,
        }

    lines = [json.dumps(step(1, 90.0)), json.dumps(step(2, 4.0))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "summary.json").write_text('{"peak_memory_gb": {"driver": 1.5}}')
    assert figures(tmp_path) == [
        "a step 4.00 s, new weights 0.50 s",
        "while at work: 3,000 tokens/s rollout, 2,000 tokens/s learner",
        "peak memory of the machine: 1.5 GB driver",
    ]
