"""A local run's cluster refuses a process without its token."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from tests.unit.driver.fleet import config
from topd_ray.actors.cluster import connected

pytestmark = [pytest.mark.engines, pytest.mark.timeout(200)]
JOIN = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None)
print("joined")
"""


Done = subprocess.CompletedProcess[str]


def joined(address: str, environment: dict[str, str]) -> Done:
    return subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_process_without_the_token_is_refused_and_one_with_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    # a stranger has another home, and no token of ours in it
    outside = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    outside["HOME"] = str(tmp_path)
    mode_at_shutdown = list[str | None]()

    def shutdown() -> None:
        mode_at_shutdown.append(os.environ.get("RAY_AUTH_MODE"))
        shut_down()

    shut_down = ray.shutdown
    monkeypatch.setattr(ray, "shutdown", shutdown)
    small = config(object_store_gib=0.1, env={"NCCL_SOCKET_IFNAME": "lo"})
    with connected(small):
        address = ray.get_runtime_context().gcs_address
        variable = ray.remote(lambda: os.environ.get("NCCL_SOCKET_IFNAME"))
        assert ray.get(variable.remote(), timeout=60) == "lo"  # cluster.env
        inside = outside | {
            name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
        }
        stranger = joined(address, outside)
        friend = joined(address, inside)
    assert friend.returncode == 0, friend.stderr
    assert friend.stdout == "joined\n"
    assert stranger.returncode != 0
    assert "InvalidAuthToken" in stranger.stderr
    assert mode_at_shutdown == ["token"]  # Ray's threads need it until then
    assert "RAY_AUTH_MODE" not in os.environ  # the next cluster gets another token
