"""Embeddings with more rows than the tokenizer has ids change nothing in a run."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs import INLINE, Run, Setting, losses
from tests.tiny import VOCAB, pad_model

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500)]

STEPS = ("run.steps=2", "evaluation.path=null")


@pytest.fixture(scope="module")
def bare(setting: Setting) -> Run:
    return setting.train("bare", *INLINE, *STEPS)


@pytest.mark.parametrize(("ours", "theirs"), [(24, 0), (0, 24), (24, 40)])
def test_a_run_of_padded_models_is_that_of_the_models_without_padding(
    ours: int, theirs: int, setting: Setting, bare: Run, tmp_path: Path
) -> None:
    """Whichever side is longer; the rows behind the last id have the largest logits."""
    models = []
    for field, rows in (("learner.model", ours), ("teacher.model", theirs)):
        section, key = field.split(".")
        source = Path(setting.values[section][key])
        if rows:
            source = pad_model(source, tmp_path / section, rows=rows)
        models.append(f"{field}={source}")
    run = setting.train(f"padded_{ours}_{theirs}", *INLINE, *STEPS, *models)
    for got, want in zip(losses(run), losses(bare), strict=True):
        assert got == pytest.approx(want, rel=1e-6, abs=1e-6)
    for got, want in zip(run.metrics, bare.metrics, strict=True):
        assert got["learner/grad_norm"] == pytest.approx(
            want["learner/grad_norm"], rel=1e-4
        )
        assert got["learner/rollout_kl"] < 1e-9
    weights = load_file(run.path / "export" / "model.safetensors")
    assert len(weights["model.embed_tokens.weight"]) == len(VOCAB) + ours
