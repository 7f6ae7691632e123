"""Trajectory-aware on-policy distillation of language models, distributed with Ray.

Example:
    >>> from topd_ray import load_config, train
    >>> config = load_config("configs/local-toy.yaml", ["run.steps=4"])
    >>> train(config)  # leaves runs/local-toy/

`Config` is the schema of a run, `load_config` reads one from a YAML file, `train` does
the run and `resume` continues one from its folder. `open_run` reads a run's folder as
tables, a `Run`. All are loaded on first use: `import topd_ray` itself loads neither
torch nor Ray nor pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topd_ray.config import Config, load_config
    from topd_ray.driver.session import resume, train
    from topd_ray.records.open_run import Run, open_run

__version__ = "0.1.0"
__all__ = ["Config", "Run", "__version__", "load_config", "open_run", "resume", "train"]

_HOMES = {
    "Config": "topd_ray.config",
    "Run": "topd_ray.records.open_run",
    "load_config": "topd_ray.config",
    "open_run": "topd_ray.records.open_run",
    "resume": "topd_ray.driver.session",
    "train": "topd_ray.driver.session",
}
"""Module of each public name that is loaded on first use."""


def __getattr__(name: str) -> Any:
    """Load a public name on first use. Raises AttributeError for any other name."""
    if name not in _HOMES:
        raise AttributeError(f"module 'topd_ray' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access finds it without this function
    return value


def __dir__() -> list[str]:
    """Return the public names, so that completion finds those not loaded yet."""
    return sorted({*globals(), *_HOMES})
