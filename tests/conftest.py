"""Model folders shared by all tests of a session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.runs import Run, Setting

# Toy-size tensors: more threads only get in each other's way, and in that of the
# engines.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says nothing on a machine that is shared.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer teacher of width 64, untied head."""
    from tests.tiny import make_model

    return make_model(
        tmp_path_factory.mktemp("teacher"), hidden=64, layers=2, seed=1, tied=False
    )


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer student of width 32, tied head."""
    from tests.tiny import make_model

    return make_model(
        tmp_path_factory.mktemp("student"), hidden=32, layers=2, seed=2, tied=True
    )


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps that no engine has trained; tests only read it."""
    from benchmarks.synthetic_run import Size, SyntheticRun

    path = tmp_path_factory.mktemp("synthetic") / "small"
    return SyntheticRun(path, Size()).write().path


@pytest.fixture(scope="session")
def taken_over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a takeover run, which has no windows."""
    from benchmarks.synthetic_run import Size, SyntheticRun

    path = tmp_path_factory.mktemp("taken-over") / "small"
    return SyntheticRun(path, Size(), method="takeover").write().path


@pytest.fixture(scope="session")
def setting(
    tmp_path_factory: pytest.TempPathFactory, student_folder: Path, teacher_folder: Path
) -> Setting:
    """Runs that start a Ray cluster each, as on a laptop."""
    return Setting(tmp_path_factory.mktemp("flow"), student_folder, teacher_folder)


@pytest.fixture(scope="session")
def cluster_address() -> Iterator[str]:
    """The address of a Ray cluster that the runs of a session share."""
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 4,
        "object_store_memory": 300_000_000,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="session")
def joined(setting: Setting, cluster_address: str) -> Setting:
    """Runs on the shared cluster, in the process of the tests."""
    return setting.joined_to(cluster_address)


@pytest.fixture(scope="session")
def whole(
    tmp_path_factory: pytest.TempPathFactory, student_folder: Path, teacher_folder: Path
) -> Run:
    """The run that others are compared with: 4 steps of TOPD on vLLM and DeepSpeed.

    The processes of pytest-xdist share it: the first that needs it trains it, and
    another one waits meanwhile.
    """
    folder = _shared(tmp_path_factory) / "whole"
    run = Run(folder / "runs" / "whole")
    with FileLock(f"{folder}.lock"):
        if not (run.path / "summary.json").is_file():
            folder.mkdir(exist_ok=True)
            Setting(folder, student_folder, teacher_folder).train_alone("whole")
    return run


def _shared(factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all processes of pytest-xdist have in common."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
