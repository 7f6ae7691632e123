"""A study over the tiny models: a few prompts, short windows, everything in a second or
two.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from topd_ray.studies.config import StudyConfig, load_study

MakeStudy = Callable[..., StudyConfig]
HF = {"backend": "hf", "dtype": "float32", "max_num_seqs": 32}


@pytest.fixture
def make_study(tmp_path: Path, student_folder: Path, teacher_folder: Path) -> MakeStudy:
    """A study file and its run config in tmp_path; keyword arguments replace its
    sections.
    """

    def make(**sections: Any) -> StudyConfig:
        rows = [{"prompt": f"w{n} w{2 * n % 48} {n % 10}"} for n in range(1, 9)]
        (tmp_path / "prompts.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
        run = {
            "prompts": {"path": str(tmp_path / "prompts.jsonl"), "max_tokens": 32},
            "rollout": {
                "engine": HF,
                "samples_per_prompt": 1,
                "max_response_tokens": 24,
                "num_top": 8,
            },
            "teacher": {"model": str(teacher_folder), "engine": HF},
            "candidates": {"fraction": 0.2, "min_window": 4},
            "probe": {"window": 8},
            "learner": {"model": str(student_folder), "dtype": "float32"},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
        study: dict[str, Any] = {
            "run": "run.yaml",
            "probing": {
                "num_prompts": 4,
                "resamples": 50,
                "windows": [4],
                "epsilons": [0.2],
                "bins": 3,
            },
            "correction": {
                "num_prompts": 6,
                "num_prefixes": 3,
                "updates": 2,
                "resamples": 50,
            },
            "case": {"num_prompts": 4, "positions": 4, "top": 3},
        }
        for name, section in sections.items():
            study[name] = (
                {**study.get(name, {}), **section}
                if isinstance(section, dict)
                else section
            )
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study))
        return load_study(path, tmp_path / "out")

    return make
