"""Whole runs whose roles take turns, on real engines, against a run without turns."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.contract.backends import THIRD_PARTY
from tests.runs import INLINE, ON_TRANSFORMERS, Run, Setting, losses, topd

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500), THIRD_PARTY]
FIELDS = ("learner.zero_stage=2", "evaluation.every=1", "run.trace=true")
TURNS = "cluster.turns=true"


def trained(setting: Setting, name: str, *overrides: str) -> Run:
    """Train one step, and another one from its checkpoint."""
    run = setting.train(name, *FIELDS, *overrides, "run.steps=1")
    done = topd("resume", run.path, "run.steps=2")
    assert done.code == 0, done.output
    return run


@pytest.fixture(scope="module")
def together(setting: Setting) -> Run:
    return trained(setting, "together", *INLINE)


def weights_of(run: Run) -> dict[str, NDArray[Any]]:
    return load_file(run.path / "export" / "model.safetensors")


def test_a_run_by_turns_trains_bit_for_bit_what_a_run_without_trains(
    setting: Setting, together: Run
) -> None:
    by_turns = trained(setting, "by-turns", *INLINE, TURNS)
    assert losses(by_turns) == losses(together)
    for key in ("accuracy_before", "accuracy_after", "student_tokens"):
        assert by_turns.summary[key] == together.summary[key]
    files = sorted(path.name for path in (together.path / "windows").iterdir())
    assert files
    for file in files:
        one, other = (
            pq.read_table(r.path / "windows" / file) for r in (by_turns, together)
        )
        assert one.equals(other), file
    weights = weights_of(by_turns)
    for name, weight in weights_of(together).items():
        np.testing.assert_array_equal(weights[name], weight, err_msg=name)


def test_actors_take_turns_and_the_time_line_shows_them(
    setting: Setting, together: Run
) -> None:
    run = setting.train(
        "actors-by-turns", *ON_TRANSFORMERS, *FIELDS, TURNS, "run.steps=1"
    )
    assert losses(run)[0] == pytest.approx(losses(together)[0])
    told = (run.path / "trace.json").read_text()
    assert '"sleep"' in told
    assert '"wake"' in told
