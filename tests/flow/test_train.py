"""The run `whole`: what it leaves, and what is refused."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.contract.backends import THIRD_PARTY
from tests.runs import PLANTED, Run, Setting, topd
from topd_ray.records.bad_step import read_dump

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500), THIRD_PARTY]

SUMMARY_KEYS = {
    "method",
    "seed",
    "steps",
    "accuracy_before",
    "accuracy_after",
    "num_eval",
    "wall_s",
    "cpu_s",
    "peak_rss_gb",
    "student_tokens",
    "num_candidates",
    "num_divergent",
    "stage_s",
}


def test_a_run_leaves_the_whole_run_folder(whole: Run) -> None:
    names = {path.name for path in whole.path.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "events.jsonl",
        "tensorboard",
        "windows",
        "rollouts",
        "timeline",
        "checkpoints",
        "export",
        "summary.json",
        "report.html",
    }
    assert whole.summary.keys() >= SUMMARY_KEYS
    roles = whole.summary["peak_memory_gb"]
    assert set(roles) >= {"driver", "rollout", "teacher", "probe", "learner", "ray"}
    assert max(roles.values()) < whole.summary["peak_rss_gb"] < sum(roles.values()) + 1
    assert set(whole.summary["stage_s"]) >= {
        "rollout",
        "teacher",
        "probe",
        "learner",
        "weights",
    }
    assert [line["step"] for line in whole.metrics] == [1, 2, 3, 4]
    cpu_s = sum(line["step/cpu_s"] for line in whole.metrics)
    assert whole.summary["cpu_s"] == pytest.approx(cpu_s, abs=0.001)
    assert (whole.path / "checkpoints" / "latest").read_text() == "step_4\n"


def test_no_secret_of_the_environment_is_in_what_a_run_leaves(whole: Run) -> None:
    files = [path for path in whole.path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {
        ".yaml",
        ".jsonl",
        ".json",
        ".log",
        ".parquet",
    }
    for path in files:
        assert PLANTED.encode() not in path.read_bytes(), path


def test_the_books_balance(whole: Run) -> None:
    metrics, summary = whole.metrics, whole.summary
    assert [line["rollout/num"] for line in metrics] == [8, 8, 8, 8]
    assert summary["num_rollouts"] == 32
    for line in metrics:
        assert line["learner/num_tokens"] == line["rollout/num_tokens"]
        assert line["teacher/num_tokens"] == line["rollout/num_tokens"]
        assert 0 < line["windows/num_divergent"] < line["candidates/num"]
        assert line["rollout/staleness"] == 0
    assert summary["student_tokens"] == sum(
        line["rollout/num_tokens"] for line in metrics
    )
    assert summary["num_divergent"] == sum(
        line["windows/num_divergent"] for line in metrics
    )


def test_every_probed_window_is_on_record(whole: Run) -> None:
    for line in whole.metrics:
        file = whole.path / "windows" / f"step_{line['step']:06d}.parquet"
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        assert len(rows) == line["candidates/num"]
        assert sum(row["divergent"] for row in rows) == line["windows/num_divergent"]
        for row in rows:
            assert row["divergent"] == (row["d_ot"] > row["threshold"])
            assert 1 <= len(row["student_ids"]) <= 16
            assert 1 <= len(row["teacher_ids"]) <= 16
            if row["student_ids"] == row["teacher_ids"]:
                assert row["d_ot"] < 1e-5


def test_a_finished_run_is_not_resumed_and_its_name_not_taken(
    setting: Setting, whole: Run
) -> None:
    again = ("run.name=whole", f"run.root={whole.path.parent}")
    for done in (topd("resume", whole.path), topd("train", setting.file, *again)):
        assert done.code == 2
        assert str(whole.path) in done.output.replace("\n", "")
        assert "Traceback" not in done.output


def test_more_gpus_than_there_are_is_refused_with_the_sum_and_leaves_nothing(
    joined: Setting,
) -> None:
    whole = ["teacher.engine.gpus=2", "teacher.engine.tensor_parallel=2"]
    too_many = [*whole, "rollout.engine.gpus=0.5", "run.name=greedy"]
    done = topd("train", joined.file, *too_many)
    assert done.code == 2
    assert "asks for 2.5 GPUs in all" in done.output
    assert "Traceback" not in done.output
    assert not joined.run("greedy").path.exists()


def test_a_cluster_that_is_not_there_is_refused(setting: Setting) -> None:
    done = topd("train", setting.file, "cluster.address=127.0.0.1:1", "run.name=lost")
    assert done.code == 2
    assert "cluster.address=127.0.0.1:1: no Ray cluster there" in done.output
    assert "Traceback" not in done.output


def test_a_student_that_is_its_teacher_has_nothing_to_learn_and_a_bad_step_is_kept(
    joined: Setting, teacher_folder: Path
) -> None:
    same = joined.train(
        "same",
        f"learner.model={teacher_folder}",
        "rollout.temperature=0",
        "rollout.samples_per_prompt=1",
        "run.steps=1",
        "health.min_entropy=50",
        "health.max_bad_steps=2",
    )
    (line,) = same.metrics
    assert abs(line["loss/opd"]) < 1e-5
    assert line["candidates/num"] > 0
    assert line["probe/mean_d_ot"] < 1e-5
    assert line["learner/skipped"] == 1
    step, rollouts = read_dump(same.path / "dumps" / "step_1")
    assert len(rollouts) == len(step.suspects) == line["rollout/num"] == 4


def test_the_export_answers_as_the_rollout_engine_did(whole: Run) -> None:
    for backend in ("vllm", "hf"):
        done = topd("eval", whole.path, "--num", "10", "--backend", backend)
        assert done.code == 0, done.output
        assert f"{whole.summary['accuracy_after']:.1%}" in done.output


def test_the_config_in_the_run_folder_is_the_resolved_one(
    setting: Setting, whole: Run
) -> None:
    resolved = yaml.safe_load((whole.path / "config.yaml").read_text())
    assert resolved["run"]["name"] == "whole"
    assert resolved["rollout"]["num_top"] == setting.values["rollout"]["num_top"]
    assert topd("check", whole.path / "config.yaml").code == 0
