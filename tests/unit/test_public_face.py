"""What `from topd_ray import …` and `python -m topd_ray` promise."""

import inspect
import subprocess
import sys

import pytest

import topd_ray

PUBLIC = ("Config", "Run", "load_config", "open_run", "train", "resume")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = python(
        "-c",
        "import sys, topd_ray\n"
        "print(sorted({'torch', 'ray', 'pydantic', 'numpy'} & sys.modules.keys()))",
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_reading_a_config_loads_neither_torch_nor_ray() -> None:
    done = python(
        "-c",
        "import sys\n"
        "from topd_ray import Config, load_config\n"
        "print(sorted({'torch', 'ray'} & sys.modules.keys()))",
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_is_listed_and_documented(name: str) -> None:
    assert name in topd_ray.__all__
    assert name in dir(topd_ray)
    assert inspect.getdoc(getattr(topd_ray, name))


def test_the_public_names_are_those_of_their_modules() -> None:
    from topd_ray.config import Config
    from topd_ray.driver.session import train

    assert topd_ray.Config is Config
    assert topd_ray.train is train


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = topd_ray.nothing


def test_a_config_is_read_from_a_path_given_as_text(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "prompts: {path: data}\nteacher: {model: big}\nlearner: {model: small}\n"
    )
    assert topd_ray.load_config(str(path)) == topd_ray.load_config(path)


def test_the_package_runs_as_the_command_line() -> None:
    done = python("-m", "topd_ray", "check", "no-such.yaml")
    assert done.returncode == 2
    assert "topd: no-such.yaml: no such config file" in done.stderr
