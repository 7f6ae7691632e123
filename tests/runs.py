"""Whole runs on real engines at toy size, and the command line that starts them.

A process that starts `topd` pays some 12 CPU seconds for imports and some 12 for a Ray
cluster before anything is computed, on top of the engines. So `topd` runs the command
line in the process of the tests, and most runs join one cluster. `topd_process` and
`Setting.train_alone` start both anew, as a user does: the run `whole`, the chaos tests
and one evaluation do that.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from topd_ray import cli

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
DEADLINE_S = 400
PLANTED = "planted-0b5e-not-a-real-key"
"""In the environment of every run, where tokens belong; nowhere in what a run leaves
behind.
"""
ON_TRANSFORMERS = ("rollout.engine.backend=hf", "teacher.engine.backend=hf")
INLINE = ("cluster.placement=inline", *ON_TRANSFORMERS)
"""Overrides for a test of something else than Ray and vLLM: a run of few seconds."""
ENVIRONMENT = {"COLUMNS": "200", "WANDB_API_KEY": PLANTED, "HF_TOKEN": PLANTED}


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    output: str


def topd(*args: str | Path) -> Finished:
    """Run `topd …` in this process, from the repository's root, by its entry point."""
    output = io.StringIO()
    with (
        _as_a_command(*map(str, args)),
        redirect_stdout(output),
        redirect_stderr(output),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    code = ended.value.code
    assert code is None or isinstance(code, int), code
    return Finished(code or 0, output.getvalue())


@contextmanager
def _as_a_command(*args: str) -> Iterator[None]:
    with (
        mock.patch.dict(os.environ, ENVIRONMENT),
        mock.patch.object(sys, "argv", ["topd", *args]),
        chdir(ROOT),
    ):
        yield


def topd_process(*args: str | Path) -> Finished:
    """Run `topd …` in a new process, from the repository's root."""
    done = subprocess.run(
        [BIN / "topd", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return Finished(done.returncode, done.stdout)


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "metrics.jsonl")

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "events.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Setting:
    """A config of the tiny models, written where a test wants it."""

    def __init__(self, folder: Path, student: Path, teacher: Path) -> None:
        self.folder = folder
        engine = {
            "backend": "vllm",
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_gib": 0.1,
            "cpus": 0.5,
        }
        prompts = folder / "prompts.jsonl"
        prompts.write_text(
            "\n".join(
                json.dumps(
                    {"prompt": f"w{i} w{(7 * i) % 40} {i % 10}", "answer": str(i % 10)}
                )
                for i in range(21)
            )
        )
        self.values: dict[str, Any] = {
            "run": {"root": str(folder / "runs"), "steps": 4, "checkpoint_every": 2},
            "prompts": {"path": str(prompts), "max_tokens": 32, "per_step": 4},
            "rollout": {
                "samples_per_prompt": 2,
                "max_response_tokens": 48,
                "chunk_size": 3,
                "num_top": 8,
                "engine": engine,
            },
            "teacher": {"model": str(teacher), "engine": engine},
            "candidates": {"fraction": 0.1},
            "probe": {"window": 16, "cpus": 0.5},
            "windows": {"token_budget": 256},
            "learner": {
                "model": str(student),
                "dtype": "float32",
                "lr": 1e-3,
                "cpus": 0.5,
            },
            "evaluation": {"path": str(prompts), "num_problems": 10},
            "cluster": {"object_store_gib": 0.1},
        }

    def joined_to(self, address: str) -> "Setting":
        """Return the same setting on a Ray cluster that is there already."""
        other = copy(self)
        other.values = deepcopy(self.values)
        other.values["cluster"]["address"] = address
        return other

    @property
    def file(self) -> Path:
        name = "joined" if "address" in self.values["cluster"] else "alone"
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self.values))
        return path

    def train(self, name: str, *overrides: str) -> Run:
        """Train in this process."""
        done = topd("train", self.file, f"run.name={name}", *overrides)
        assert done.code == 0, done.output
        return self.run(name)

    def train_alone(self, name: str, *overrides: str) -> Run:
        """Train in a new process."""
        done = topd_process("train", self.file, f"run.name={name}", *overrides)
        assert done.code == 0, done.output
        return self.run(name)

    def run(self, name: str) -> Run:
        return Run(self.folder / "runs" / name)


def losses(run: Run) -> list[tuple[float, float]]:
    return [(line["loss/opd"], line["loss/traj"]) for line in run.metrics]
