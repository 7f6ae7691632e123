from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests.runs import PLANTED, Run, Setting, topd

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500)]

SUMMARY_KEYS = {
    "method",
    "seed",
    "steps",
    "accuracy_before",
    "accuracy_after",
    "num_eval",
    "wall_s",
    "peak_rss_gb",
    "student_tokens",
    "num_candidates",
    "num_divergent",
    "stage_s",
}


def losses(run: Run) -> list[tuple[float, float]]:
    return [(line["loss/opd"], line["loss/traj"]) for line in run.metrics]


def test_a_run_leaves_the_whole_run_folder(whole: Run) -> None:
    names = {path.name for path in whole.path.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "events.jsonl",
        "tensorboard",
        "windows",
        "checkpoints",
        "export",
        "summary.json",
    }
    assert whole.summary.keys() >= SUMMARY_KEYS
    assert set(whole.summary["stage_s"]) >= {
        "rollout",
        "teacher",
        "probe",
        "learner",
        "weights",
    }
    assert [line["step"] for line in whole.metrics] == [1, 2, 3, 4]
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


def test_the_run_repeats_and_a_killed_one_resumes_as_if_nothing_had_happened(
    setting: Setting, whole: Run
) -> None:
    first = setting.train("first-half", "run.steps=4", "health.max_bad_steps=1")
    assert losses(first) == losses(whole)

    # As after a kill between step 3 and its checkpoint: the newest checkpoint is that
    # of step 2.
    (first.path / "summary.json").unlink()
    (first.path / "checkpoints" / "latest").write_text("step_2\n")
    done = topd("resume", first.path)
    assert done.code == 0, done.output
    assert losses(first) == losses(whole)
    assert first.summary["num_rollouts"] == 32
    assert first.summary["accuracy_after"] == whole.summary["accuracy_after"]
    assert [event["event"] for event in first.events].count("resumed") == 1
    assert same_weights(first.path / "export", whole.path / "export")


def test_a_finished_run_is_not_resumed_and_its_name_not_taken(
    setting: Setting, whole: Run
) -> None:
    for done in (
        topd("resume", whole.path),
        topd("train", setting.file, "run.name=whole"),
    ):
        assert done.code == 2
        assert str(whole.path) in done.output.replace("\n", "")
        assert "Traceback" not in done.output


def test_more_gpus_than_there_are_is_refused_with_the_sum_and_leaves_nothing(
    setting: Setting,
) -> None:
    asked = ["learner.gpus=64", "rollout.engine.gpus=0.5", "run.name=greedy"]
    done = topd("train", setting.file, *asked)
    assert done.code == 2
    assert "asks for 64.5 GPUs in all" in done.output
    assert "Traceback" not in done.output
    assert not setting.run("greedy").path.exists()


def test_a_cluster_that_is_not_there_is_refused(setting: Setting) -> None:
    done = topd("train", setting.file, "cluster.address=127.0.0.1:1", "run.name=lost")
    assert done.code == 2
    assert "cluster.address=127.0.0.1:1: no Ray cluster there" in done.output
    assert "Traceback" not in done.output


def test_two_ranks_with_sharded_gradients_train_as_one(
    setting: Setting, whole: Run
) -> None:
    two = setting.train(
        "two-ranks", "learner.num_ranks=2", "learner.zero_stage=2", "run.steps=2"
    )
    expected = np.array(losses(whole)[:1])
    assert np.allclose(losses(two)[:1], expected, rtol=1e-5)
    one_norm, two_norm = whole.metrics[0], two.metrics[0]
    assert two_norm["learner/grad_norm"] == pytest.approx(
        one_norm["learner/grad_norm"], rel=1e-4
    )
    assert (
        two.metrics[0]["windows/num_divergent"]
        == whole.metrics[0]["windows/num_divergent"]
    )


def test_two_rollout_engines_and_two_probe_workers_serve_one_run(
    setting: Setting, whole: Run
) -> None:
    more = setting.train(
        "more", "rollout.num_engines=2", "probe.num_workers=2", "run.steps=2"
    )
    assert [line["rollout/num"] for line in more.metrics] == [8, 8]
    tokens = [line["rollout/num_tokens"] for line in more.metrics]
    assert (
        tokens[0] == whole.metrics[0]["rollout/num_tokens"]
    )  # seeds are derived, not ambient


def test_opd_is_the_same_run_without_probes(setting: Setting, whole: Run) -> None:
    opd = setting.train("opd", "run.method=opd", "run.steps=2")
    assert all(line["candidates/num"] == line["loss/traj"] == 0 for line in opd.metrics)
    assert all(line["loss"] == line["loss/opd"] for line in opd.metrics)
    assert not (opd.path / "windows").exists()
    assert opd.metrics[0]["loss/opd"] == pytest.approx(
        whole.metrics[0]["loss/opd"], rel=1e-6
    )


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    setting: Setting, teacher_folder: Path
) -> None:
    same = setting.train(
        "same",
        f"learner.model={teacher_folder}",
        "rollout.temperature=0",
        "rollout.samples_per_prompt=1",
        "run.steps=1",
    )
    (line,) = same.metrics
    assert abs(line["loss/opd"]) < 1e-5
    assert line["candidates/num"] > 0
    assert line["probe/mean_d_ot"] < 1e-5


def test_the_transformers_back_end_runs_the_same_pipeline(setting: Setting) -> None:
    hf = setting.train(
        "hf",
        *(f"{role}.engine.backend=hf" for role in ("rollout", "teacher", "probe")),
        "rollout.temperature=0",
        "rollout.samples_per_prompt=1",
        "run.steps=1",
    )
    assert hf.metrics[0]["rollout/num"] == 4
    assert np.isfinite(hf.metrics[0]["loss"])


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


def same_weights(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (
        other / "model.safetensors"
    ).read_bytes()
