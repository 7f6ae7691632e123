"""A student with adapters on the toy world, from rollouts to its export."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.runs import INLINE, ROOT, Run, topd
from topd_ray.driver import session as driver

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500)]
SMALL = (
    "run.method=opd",
    "run.steps=6",
    "run.checkpoint_every=3",
    "prompts.per_step=6",
    "evaluation.path=null",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("lora")
    done = topd(
        "train",
        "configs/toy/lora.yaml",
        *SMALL,
        *INLINE,
        f"run.root={root}",
        "run.name=lora",
    )
    assert done.code == 0, done.output
    return Run(root / "lora")


def test_adapters_lower_the_loss_of_the_toy_world(run: Run) -> None:
    losses = [line["loss"] for line in run.metrics]
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2]), losses


def test_the_engine_decodes_with_the_weights_that_the_adapters_make(run: Run) -> None:
    """Sampled with merged weights, trained with adapters: they differ by rounding."""
    assert max(line["learner/rollout_kl"] for line in run.metrics) < 1e-6


def test_a_resumed_run_continues_exactly(run: Run) -> None:
    uninterrupted = [line["loss"] for line in run.metrics]
    exported = (run.path / "export" / "model.safetensors").read_bytes()
    (run.path / "summary.json").unlink()
    # As if killed after step 3.
    (run.path / "checkpoints" / "latest").write_text("step_3\n")
    driver.resume(run.path)
    assert [event["event"] for event in run.events].count("resumed") == 1
    assert [line["loss"] for line in run.metrics] == uninterrupted
    assert (run.path / "export" / "model.safetensors").read_bytes() == exported


def test_the_export_has_the_names_of_the_student_and_its_frozen_weights(
    run: Run,
) -> None:
    student = _weights(ROOT / "topd_ray" / "toy" / "world" / "student")
    exported = _weights(run.path / "export")
    assert exported.keys() == student.keys()
    frozen = {name for name in student if name.split(".")[-2][-5:] != "_proj"}
    moved = {n for n in student if not np.array_equal(exported[n], student[n])}
    assert moved == student.keys() - frozen


def _weights(folder: Path) -> dict[str, np.ndarray]:
    weights: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
    return weights
