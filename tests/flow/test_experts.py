"""A student that is a mixture of experts: trained, sent to its engine, exported."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs import INLINE, Setting, topd
from tests.tiny import make_experts


@pytest.fixture(scope="module")
def mixture(
    tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path
) -> tuple[Setting, Path]:
    folder = tmp_path_factory.mktemp("experts")
    student = make_experts(folder / "student")
    return Setting(folder, student, teacher_folder), student


def test_a_mixture_of_experts_learns_and_is_exported_as_it_was_read(
    mixture: tuple[Setting, Path],
) -> None:
    """The second step's rollouts are of weights that were sent.

    A learner that trains other ones would end the run (`health.max_rollout_kl`).
    """
    setting, student = mixture
    run = setting.train(
        "experts", *INLINE, "run.steps=2", "run.method=opd", "evaluation.path=null"
    )
    assert len(run.metrics) == 2
    assert abs(run.metrics[1]["learner/rollout_kl"]) < 1e-6
    before = load_file(student / "model.safetensors")
    after = load_file(run.path / "export" / "model.safetensors")
    assert {n: t.shape for n, t in after.items()} == {
        n: t.shape for n, t in before.items()
    }
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    assert not after[name].equal(before[name])


def test_it_is_refused_where_vllm_could_not_load_its_update(
    mixture: tuple[Setting, Path],
) -> None:
    setting, _ = mixture
    done = topd("check", setting.file)
    assert done.code == 2
    assert "rollout.engine.backend=hf, or give rollout.engine a GPU" in done.output
