"""Whole runs on real engines at toy size, started as a user starts them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
DEADLINE_S = 400
PLANTED = "planted-0b5e-not-a-real-key"
"""In the environment of every run, where tokens belong; nowhere in what a run leaves
behind.
"""


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    output: str


def topd(*args: str | Path) -> Finished:
    """Run `topd …` in a process of its own, from the repository's root."""
    done = subprocess.run(
        [BIN / "topd", *map(str, args)],
        cwd=ROOT,
        env={
            **os.environ,
            "COLUMNS": "200",
            "WANDB_API_KEY": PLANTED,
            "HF_TOKEN": PLANTED,
        },
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

    @property
    def file(self) -> Path:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.values))
        return path

    def train(self, name: str, *overrides: str) -> Run:
        done = topd("train", self.file, f"run.name={name}", *overrides)
        assert done.code == 0, done.output
        return self.run(name)

    def run(self, name: str) -> Run:
        return Run(self.folder / "runs" / name)
