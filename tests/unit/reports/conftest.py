"""A run config over a file of prompts and a model folder that holds no model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from topd_ray.config import Config, load_config

LoadRun = Callable[..., Config]


@pytest.fixture
def load_run(tmp_path: Path) -> LoadRun:
    """Load the run config, with overrides; its prompts lie in `tmp_path`."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "w1 w2"}\n')
    (tmp_path / "model").mkdir()
    values = {
        "prompts": {"path": str(prompts)},
        "teacher": {"model": str(tmp_path / "model")},
        "learner": {"model": str(tmp_path / "model")},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return lambda *overrides: load_config(path, list(overrides))
