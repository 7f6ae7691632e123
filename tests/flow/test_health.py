"""Steps that cannot be trusted: skipped, kept, replayed, and in the end the run
stops.
"""

import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml

from tests.make import rollout
from tests.runs import INLINE, Run, Setting, topd
from tests.tiny import EOS_ID, VOCAB
from topd_ray.commands.replay import replay
from topd_ray.config.base import EngineConfig
from topd_ray.engines import hf
from topd_ray.engines.hf import HfGeneration
from topd_ray.errors import TopdError, WeightsError
from topd_ray.records.bad_step import BadStep, write_rollouts, write_step

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500)]

FIGURES = ("num_tokens", "loss_opd", "loss_traj", "grad_norm")


def replayed(dump: Path) -> list[list[Any]]:
    """Return of each rollout of a dump its id, its number of tokens and its figures."""
    rows = []
    for part in replay(dump):
        figures = [getattr(part.report, name) for name in FIGURES]
        rows.append([part.rollout.rollout_id, *figures])
    return rows


def test_bad_steps_are_skipped_kept_and_end_the_run_and_a_replay_shows_each_rollout(
    setting: Setting,
) -> None:
    """Inline on transformers; test_train.py keeps a bad step of actors and vLLM."""
    run = setting.run("collapsed")
    limits = ("health.min_entropy=50", "health.max_bad_steps=2")
    done = topd("train", setting.file, "run.name=collapsed", *INLINE, *limits)
    assert done.code == 1, done.output
    message = done.output.replace("\n", " ")
    assert "is below health.min_entropy=50" in message
    assert "2 bad steps in a row" in message
    assert "Traceback" not in done.output
    skipped = [event for event in run.events if event["event"] == "step_skipped"]
    assert [event["step"] for event in skipped] == [1, 2]
    assert len(skipped[0]["prompt_ids"]) == 4
    assert len(skipped[0]["suspects"]) == 8
    assert {path.name for path in (run.path / "dumps").iterdir()} == {
        "step_1",
        "step_2",
    }
    last = run.metrics[-1]
    assert last["learner/skipped"] == 1

    rows = replayed(run.path / "dumps" / "step_2")
    assert sorted(row[0] for row in rows) == sorted(skipped[1]["suspects"])
    num_tokens = sum(row[1] for row in rows)
    assert num_tokens == last["learner/num_tokens"]
    for place, name in ((2, "loss/opd"), (3, "loss/traj")):
        mean = sum(row[1] * row[place] for row in rows) / num_tokens
        assert mean == pytest.approx(last[name], rel=1e-4, abs=1e-7)
    assert all(row[4] > 0 for row in rows)


def test_what_is_no_dump_is_refused(setting: Setting) -> None:
    done = topd("replay", setting.folder)
    assert done.code == 2
    assert "not a dump of a step" in done.output.replace("\n", " ")


ODD: dict[str, tuple[list[int], str]] = {
    "EOS at once": ([EOS_ID], "stop"),
    "one token at the limit": ([20], "length"),
    "shorter than any window": ([20, 21, EOS_ID], "stop"),
    "at the limit, no EOS": ([20 + i % 30 for i in range(48)], "length"),
    "one token again and again": ([30] * 47 + [EOS_ID], "stop"),
    "special tokens in the middle": ([0, 1, EOS_ID, 5] * 10 + [EOS_ID], "stop"),
    "the last id of the vocabulary": ([len(VOCAB) - 1] * 12 + [EOS_ID], "stop"),
}


def test_odd_rollouts_go_through_teacher_probe_and_learner(
    joined: Setting, whole: Run, student_folder: Path
) -> None:
    """A dump written by hand: what no sampler can be made to say on purpose."""
    run = joined.run("odd")
    dump = run.path / "dumps" / "step_1"
    dump.mkdir(parents=True)
    values = yaml.safe_load((whole.path / "config.yaml").read_text())
    values["cluster"]["address"] = joined.values["cluster"]["address"]
    (run.path / "config.yaml").write_text(yaml.safe_dump(values))
    shutil.copytree(student_folder, dump / "student")
    rollouts = [
        rollout(
            f"{position:08d}.0",
            position=position,
            response_ids_N=np.array(ids, np.int32),
            logp_O=np.full(len(ids), -2.0, np.float32),
            top_ids_OM=np.tile(np.arange(8, dtype=np.int32), (len(ids), 1)),
            top_logp_OM=np.full((len(ids), 8), np.log(1 / 16), np.float32),
            finish_reason=reason,
        )
        for position, (ids, reason) in enumerate(ODD.values())
    ]
    write_rollouts(dump, rollouts)
    write_step(dump, BadStep(step=1, complaints=["odd"], suspects=[], threshold=0.0))
    rows = replayed(dump)
    assert [row[1] for row in rows] == [len(ids) for ids, _ in ODD.values()]
    for name, row in zip(ODD, rows, strict=True):
        assert np.isfinite(row[2:]).all(), name
        assert row[2] > 0, name  # another model than the teacher


@pytest.mark.parametrize(
    ("error", "way_on"),
    [
        (
            WeightsError("weight w is missing"),
            "a resumed run would fail in the same way",
        ),
        (TopdError("the bus is off"), "goes on from its start"),
    ],
)
def test_a_failed_weight_update_is_reported_as_itself(
    error: TopdError, way_on: str, setting: Setting
) -> None:
    name = f"failed_load_{type(error).__name__}"
    with mock.patch.object(HfGeneration, "load_weights", side_effect=error):
        done = topd("train", setting.file, f"run.name={name}", *INLINE)
    assert done.code == 1, done.output
    message = " ".join(done.output.split())
    assert f"policy_version 1 failed: {type(error).__name__}: {error}" in message
    assert "publish the weights first" not in message
    assert way_on in message


def test_an_engine_that_computes_another_model_ends_the_run_before_any_update(
    setting: Setting,
) -> None:
    def off(folder: Path, engine: EngineConfig) -> Any:
        model = load_model(folder, engine)
        model.model.norm.weight.data *= 1.2
        return model

    load_model = hf.load_model
    with mock.patch.object(hf, "load_model", off):  # the teacher's is another name
        done = topd("train", setting.file, "run.name=other_model", *INLINE)
    assert done.code == 1, done.output
    message = " ".join(done.output.split())
    assert "rollout engine and learner do not compute the same model" in message
    assert re.search(
        r"rollout \d+\.\d, token \d+ at \d+: log p -\d+\.\d{4} in the engine", message
    )
    assert "a resumed run would fail in the same way" in message
    assert not setting.run("other_model").metrics
