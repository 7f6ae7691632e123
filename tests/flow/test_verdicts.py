"""Verdicts on the toy world, where arithmetic says which tokens are forks."""

import json
from pathlib import Path

import pytest

from topd_ray.studies import verdicts
from topd_ray.studies.config import load_study

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500)]

ROOT = Path(__file__).parents[2]


def test_states_tell_forks_from_wording_better_than_words_do(tmp_path: Path) -> None:
    study = load_study(ROOT / "configs" / "studies" / "toy.yaml", tmp_path)
    assert study.verdicts is not None
    small = {
        "num_prompts": 24,
        "windows": (8, 16),
        "resamples": 20,
        "overrides": ("probe.window=16",),
    }
    settings = study.verdicts.model_copy(update=small)
    verdicts.run(study.model_copy(update={"verdicts": settings}))
    tables = json.loads((tmp_path / "verdicts.json").read_text())["tables"]
    counts = {row["windows"]: row["number"] for row in tables["counts"]}
    assert min(counts["forks"], counts["wording"]) >= 40
    assert counts["without a converged plan, left out"] == 0
    area = {
        (row["verdict"], row["K"]): row["AUROC"]["value"] for row in tables["auroc"]
    }
    # By 150 prompts: .996, .98, .92, .75; the intervals of 24 are wider.
    assert area["surprise: -log p_T(y_t) - H(p_T)", None] >= 0.95
    assert area["D_OT, hidden states", 8] >= 0.93
    assert area["D_OT, hidden states", 16] > area["D_OT", 16] + 0.05
    assert area["D_OT, ordered", 16] > area["D_OT", 16]
