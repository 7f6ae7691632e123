"""The Ray cluster of a run: joined where there is one, else started on this machine."""

import importlib
import math
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray.exceptions import RayError

from topd_ray.actors.placement import Placement, cluster_name, place
from topd_ray.actors.reservation import living_nodes
from topd_ray.actors.resources import total_resources
from topd_ray.config import Config
from topd_ray.errors import TopdError, UserError, first_line

_CONNECT_S = 10.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "0",
}
_AUTH_MODE = "RAY_AUTH_MODE"
_AUTH_TOKEN = "RAY_AUTH_TOKEN"


@contextmanager
def connected(config: Config) -> Iterator[Placement | None]:
    """Join the cluster of the config or of the submitted job, or start a local one.

    Yields where the actors would be. With `cluster.placement: inline` there is no
    cluster and no such place. Raises UserError where there is no such cluster, and
    PlacementError where it is too small for the config.
    """
    if config.cluster.placement == "inline":
        yield None
        return
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    # Ray's threads call the cluster until they are shut down: the token outlives them.
    with nullcontext() if address else _own_token():
        try:
            if address:
                _join(address, config.cluster.env)
            else:
                _start_local(config)
            # Here, because a config that is refused must leave no run folder.
            yield place(config, living_nodes(), where=cluster_name(config.cluster))
        finally:
            ray.shutdown()


@contextmanager
def joined(address: str, env: Mapping[str, str]) -> Iterator[None]:
    """Join a running cluster; raise UserError where there is none."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    try:
        _join(address, env)
        yield
    finally:
        ray.shutdown()


def _join(address: str, env: Mapping[str, str]) -> None:
    try:
        _try_port(address)
        ray.init(
            address=address,
            runtime_env=_runtime_env(env),
            log_to_driver=False,
            logging_level="warning",
        )
    except (OSError, ValueError, RayError) as error:
        raise UserError(
            f"cluster.address={address}: no Ray cluster there, or none that lets this"
            f" process in ({first_line(error)}); `ray start --head` starts"
            " one, a cluster with RAY_AUTH_MODE=token needs its RAY_AUTH_TOKEN here"
            " too, and without an address a local cluster is started"
        ) from None


def _start_local(config: Config) -> None:
    # Without a dashboard nothing reads Ray's log of calls, 3.5 KB each in the memory of
    # its control store.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    cpus = total_resources(config)["CPU"]
    store_gib = config.cluster.object_store_gib
    try:
        ray.init(
            address="local",
            # CPUs are numbers to Ray: on a laptop more actors may share fewer cores
            num_cpus=max(math.ceil(cpus), os.cpu_count() or 1),
            object_store_memory=int(store_gib * 2**30),
            include_dashboard=False,
            runtime_env=_runtime_env(config.cluster.env),
            log_to_driver=False,
            logging_level="warning",
        )
    except (ValueError, OSError, RayError) as error:
        raise UserError(
            f"Ray does not start on this machine ({first_line(error)}); the object"
            f" store of cluster.object_store_gib={store_gib:g} must fit into /dev/shm:"
            " lower it, or enlarge /dev/shm (`docker run --shm-size=…`)"
        ) from None
    # Ray raises a bare Exception where its processes are not up in half a minute.
    except Exception as error:
        raise TopdError(
            f"Ray does not start on this machine: {first_line(error)} Where other work"
            " keeps it busy, wait for that, and start again"
        ) from error


def _runtime_env(env: Mapping[str, str]) -> dict[str, object] | None:
    # None where there is nothing to set: Ray would start an agent for an empty one.
    return {"env_vars": dict(env)} if env else None


@contextmanager
def _own_token() -> Iterator[None]:
    """Protect the local cluster by a fresh token, which only its own processes know.

    Ray listens on every interface of the machine, and a process that joins a cluster
    runs code in it. A mode that the environment sets already is left as it is.
    """
    if _AUTH_MODE in os.environ:
        yield
        return
    own = {_AUTH_MODE: "token", _AUTH_TOKEN: secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    _read_environment_again()
    try:
        yield
    finally:
        _restore(before)
        _read_environment_again()


def _restore(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _read_environment_again() -> None:
    # Ray reads the mode once, when it is imported, and keeps the first token it finds.
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    raylet.Config.initialize("")


def _try_port(address: str) -> None:
    """Raise OSError where nothing listens; Ray itself would wait for minutes.

    The address `auto` names no port to try.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        where = (host.strip("[]"), int(port))
        with socket.create_connection(where, timeout=_CONNECT_S):
            pass
