"""Steps that cannot be trusted: skipped, kept, replayed, and in the end the run stops."""

import json
import subprocess
import sys

import pytest

from tests.runs import ROOT, Setting, topd

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500)]

REPLAY = """
import json, sys
from pathlib import Path
from topd_ray.driver.replay import replay
found = replay(Path(sys.argv[1]))
print(json.dumps([[one.rollout.rollout_id, one.report.num_tokens, one.report.loss_opd,
                   one.report.loss_traj, one.report.grad_norm] for one in found]))
"""


def test_bad_steps_are_skipped_kept_and_end_the_run_and_a_replay_shows_each_rollout(
    setting: Setting,
) -> None:
    run = setting.run("collapsed")
    limits = ("health.min_entropy=50", "health.max_bad_steps=2")
    done = topd("train", setting.file, "run.name=collapsed", *limits)
    assert done.code == 1, done.output
    message = done.output.replace("\n", " ")
    assert "is below health.min_entropy=50" in message
    assert "the 2. bad step in a row" in message
    assert "Traceback" not in done.output
    skipped = [event for event in run.events if event["event"] == "step_skipped"]
    assert [event["step"] for event in skipped] == [1, 2]
    assert len(skipped[0]["prompt_ids"]) == 4
    assert len(skipped[0]["suspects"]) == 8
    assert {path.name for path in (run.path / "dumps").iterdir()} == {"step_1", "step_2"}
    last = run.metrics[-1]
    assert last["learner/skipped"] == 1

    dump = run.path / "dumps" / "step_2"
    shown = subprocess.run(
        [sys.executable, "-c", REPLAY, dump],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    rows = json.loads(shown.stdout.splitlines()[-1])
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
