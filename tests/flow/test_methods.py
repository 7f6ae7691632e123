"""Every objective as a run: most inline on transformers, a few on the actors and
vLLM.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests.recorded import recorded, refuse_wrong_records
from tests.runs import Run, Setting, losses, topd
from topd_ray.actors import outcomes
from topd_ray.commands.generate import AnswerSampling, generate
from topd_ray.config import parse_config
from topd_ray.driver import session as driver
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.step_file import step_files

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500)]

HF = {"backend": "hf", "dtype": "float32", "cpus": 0.5}


@dataclass(frozen=True)
class Bench:
    """Runs configs of the tiny models, in this process unless `cluster` differs."""

    values: dict[str, Any]
    folder: Path
    trained: dict[str, Run] = field(default_factory=dict)
    """Runs of METHODS so far, by name."""

    def method(self, name: str) -> Run:
        """Return the run of one of METHODS; the first call trains it."""
        if name not in self.trained:
            self.trained[name] = self.run(name, **METHODS[name])
        return self.trained[name]

    def config(self, name: str, **sections: dict[str, Any]) -> dict[str, Any]:
        values = {section: dict(fields) for section, fields in self.values.items()}
        for section, fields in sections.items():
            values[section] = values.get(section, {}) | fields
        values["run"]["name"] = name
        return values

    def run(self, name: str, **sections: dict[str, Any]) -> Run:
        config = parse_config(self.config(name, **sections), source="test")
        driver.train(config)
        return Run(RunFolder(Path(config.run.root) / name).path)


@pytest.fixture(scope="session")
def bench(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("methods")
    prompts, forms = folder / "prompts.jsonl", folder / "forms.yaml"
    prompts.write_text(
        "\n".join(
            json.dumps(
                {
                    "prompt_id": f"p{i}",
                    "prompt": f"w{i} w{(7 * i) % 40} {i % 10}",
                    "reference": f"w{i} w1 w2",
                    "answer": str(i % 10),
                }
            )
            for i in range(21)
        )
    )
    forms.write_text(
        yaml.safe_dump(
            {
                "reference": "{problem} w40 {reference}",
                "refine": "{problem} w41 {attempt}",
                "refine_reference": "{problem} w40 {reference} w41 {attempt}",
            }
        )
    )
    values = {section: dict(fields) for section, fields in setting.values.items()}
    values["run"] |= {"root": str(folder / "runs"), "steps": 3, "checkpoint_every": 2}
    values["prompts"] |= {
        "path": str(prompts),
        "forms": str(forms),
        "max_form_tokens": 8,
        "max_reference_tokens": 16,
    }
    for section in ("rollout", "teacher"):
        values[section] |= {"engine": HF}
    values["cluster"] |= {"placement": "inline"}
    return Bench(values, folder)


OWN_TEACHER = {"source": "student", "model": None}
TAKEOVER: dict[str, dict[str, Any]] = {
    "run": {"method": "takeover"},
    # Random models: nothing is as sure as a trained one.
    "takeover": {"max_teacher_prob": 0.3, "max_teacher_entropy": 10.0},
}
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "opd": {"run": {"method": "opd"}},
    "topd": {},
    "topd-dedicated": {"probe": {"engine": HF}},
    "topd-stale": {"rollout": {"max_staleness": 1}},
    "topd-resample": {"probe": {"student": "resample"}},
    "topd-low-loss-q75": {"windows": {"divergence": {"rule": "low_loss_q75"}}},
    "topd-student-embedding": {"probe": {"embedding": "student"}},
    "topd-topk": {"teacher": {"signal": "topk", "top_k": 8}},
    "topd-sampled": {"teacher": {"signal": "sampled"}},
    "low-ot": {"run": {"method": "opd"}, "objective": {"downweight": "low_ot"}},
    "matched-high-ot": {
        "run": {"method": "opd"},
        "objective": {"downweight": "matched_high_ot"},
    },
    "entropy-divergence": {
        "run": {"method": "opd"},
        "objective": {"select": "entropy_divergence"},
    },
    "entropy-aware": {
        "run": {"method": "opd"},
        "objective": {"forward_above_entropy": 1.0},
    },
    "forward-clipped": {
        "run": {"method": "opd"},
        "objective": {"divergence": "forward_kl", "token_clip": 5.0},
    },
    "reverse-topk": {
        "run": {"method": "opd"},
        "teacher": {"signal": "topk", "top_k": 8, "tail": "renormalise"},
    },
    "opsd": {"run": {"method": "opsd"}, "teacher": OWN_TEACHER},
    "topd-opsd-following": {
        "run": {"method": "opsd"},
        "teacher": OWN_TEACHER | {"follow_every": 2},
        "objective": {"divergence": "reverse_kl", "lambda_traj": 0.3},
    },
    "trd": {"run": {"method": "trd"}},
    "takeover": TAKEOVER,
    "takeover-d-ot": TAKEOVER
    | {"takeover": {"max_teacher_prob": 0.3, "verdict": "d_ot"}},
    "takeover-surprise": TAKEOVER
    | {"takeover": {"verdict": "surprise", "quantile": 0.9}},
    "takeover-never": TAKEOVER
    | {"takeover": {"verdict": "never"}, "objective": {"mix": False}},
    "takeover-always": TAKEOVER
    | {
        "takeover": {"verdict": "always", "temperature": 0.0},
        "objective": {"mix": False},
    },
    "takeover-opsd": TAKEOVER
    | {"teacher": OWN_TEACHER, "objective": {"context": "reference"}},
    "takeover-stale": TAKEOVER | {"rollout": {"max_staleness": 1}},
    "takeover-topk": TAKEOVER | {"teacher": {"signal": "topk", "top_k": 8}},
    "trd-opsd": {
        "run": {"method": "trd"},
        "teacher": OWN_TEACHER,
        "objective": {"context": "refine_reference"},
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_every_objective_trains(bench: Bench, name: str) -> None:
    run = bench.method(name)
    assert [line["step"] for line in run.metrics] == [1, 2, 3]
    assert all(line["learner/grad_norm"] > 0 for line in run.metrics)
    assert not any(line["learner/skipped"] for line in run.metrics)
    assert run.summary["trained_tokens"] > 0
    assert (run.path / "export" / "model.safetensors").is_file()
    topd_like = name.startswith("topd")
    assert all((line["loss/traj"] > 0) == topd_like for line in run.metrics)
    takes_over = name.startswith("takeover") and name != "takeover-never"
    assert (run.summary["num_candidates"] > 0) == (topd_like or "-ot" in name)
    assert (run.summary["num_taken_over"] > 0) == takes_over
    for line in run.metrics:
        signal = "sampled" if name == "topd-sampled" else "whole"
        refuse_wrong_records(run, line, signal=signal)


def test_a_teacher_that_never_takes_over_is_opd_bit_for_bit(bench: Bench) -> None:
    assert losses(bench.method("takeover-never")) == losses(bench.method("opd"))
    weights = [
        (bench.method(name).path / "export" / "model.safetensors").read_bytes()
        for name in ("takeover-never", "opd")
    ]
    assert weights[0] == weights[1]


def test_a_teacher_that_always_takes_over_is_distillation_on_its_answers(
    bench: Bench,
) -> None:
    """`topd generate` writes the same greedy answers, and kd trains on them."""
    always = bench.run(
        "always",
        run={"method": "takeover", "steps": 2},
        objective={"mix": False},
        takeover={"verdict": "always", "temperature": 0.0},
        rollout={"samples_per_prompt": 1},
        prompts={"per_step": 8},
    )
    answers = bench.folder / "greedy.jsonl"
    config = parse_config(bench.config("greedy"), source="test")
    greedy = AnswerSampling(temperature=0.0, top_p=1.0, max_tokens=999)
    generate(config, answers, greedy)
    # In the order of the prompts, which decides what a step is made of.
    rows = sorted(
        answers.read_text().splitlines(),
        key=lambda line: int(json.loads(line)["prompt_id"][1:]),
    )
    answers.write_text("\n".join(rows))
    kd = bench.run(
        "kd-on-answers",
        run={"method": "kd", "steps": 2},
        objective={"kd_ratio": 1.0},
        prompts={"per_step": 8, "path": str(answers), "truncated": "keep"},
        rollout={"samples_per_prompt": 1},
    )
    # States of a decoding and of a reading differ by rounding.
    assert np.allclose(losses(always), losses(kd), rtol=1e-4)
    assert all(line["takeover/frac"] == 1 for line in always.metrics)
    assert all(line["takeover/own_frac"] == 0 for line in always.metrics)


def test_opd_is_the_same_run_without_probes(bench: Bench) -> None:
    opd, topd_run = bench.method("opd"), bench.method("topd")
    assert all(line["candidates/num"] == line["loss/traj"] == 0 for line in opd.metrics)
    assert all(line["loss"] == line["loss/opd"] for line in opd.metrics)
    assert not (opd.path / "windows").exists()
    assert opd.metrics[0]["loss/opd"] == pytest.approx(
        topd_run.metrics[0]["loss/opd"], rel=1e-6
    )


def test_a_run_lasts_its_passes_over_the_prompts_and_keeps_its_newest_checkpoints(
    bench: Bench,
) -> None:
    length = {"steps": None, "checkpoint_every": 1, "keep_checkpoints": 2}
    passes = {"epochs": 2, "per_step": 14}
    run = bench.run("passes", run=length | {"method": "opd"}, prompts=passes)
    assert [line["step"] for line in run.metrics] == [1, 2, 3]  # 2 x 21 prompts
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == {
        "step_2",
        "step_3",
        "latest",
    }


def on_actors(address: str) -> dict[str, Any]:
    return {"placement": "actors", "address": address}


def test_inline_and_actors_differ_in_placement_only(
    bench: Bench, cluster_address: str
) -> None:
    inline = bench.run("inline", evaluation={"every": 2})
    actors = bench.run(
        "actors", evaluation={"every": 2}, cluster=on_actors(cluster_address)
    )
    assert losses(inline) == losses(actors)
    (here,) = [event for event in inline.events if event["event"] == "evaluated"]
    (there,) = [event for event in actors.events if event["event"] == "evaluated"]
    assert here["step"] == there["step"] == 2
    assert here["num_correct"] == there["num_correct"]
    summaries = inline.summary, actors.summary
    assert summaries[0]["accuracy_after"] == summaries[1]["accuracy_after"]


def assert_same_first_step(two: Run, one: Run) -> None:
    assert np.allclose(losses(two)[:1], losses(one)[:1], rtol=1e-5)
    first, first_of_two = one.metrics[0], two.metrics[0]
    assert first_of_two["learner/grad_norm"] == pytest.approx(
        first["learner/grad_norm"], rel=1e-4
    )
    for name in ("windows/num_divergent", "learner/num_tokens"):
        assert first_of_two[name] == first[name]


def test_two_ranks_with_sharded_gradients_train_as_one(
    bench: Bench, cluster_address: str
) -> None:
    """On actors, and the probe workers have engines of their own."""
    two = bench.run(
        "two-ranks",
        run={"steps": 2},
        probe={"engine": HF},
        learner={"num_ranks": 2, "zero_stage": 2},
        cluster=on_actors(cluster_address),
    )
    one = bench.method("topd-dedicated")
    assert_same_first_step(two, one)
    assert [line["step"] for line in two.metrics] == [1, 2]


def test_two_ranks_that_share_sequences_train_as_one(
    bench: Bench, cluster_address: str
) -> None:
    two = bench.run(
        "shared-sequences",
        run={"steps": 2},
        learner={"num_ranks": 2, "sequence_parallel": 2},
        cluster=on_actors(cluster_address),
    )
    one = bench.method("topd")
    assert_same_first_step(two, one)
    files = [run.path / "windows" / "step_000001.parquet" for run in (two, one)]
    rows = [pq.read_table(file).num_rows for file in files]
    assert rows[0] == rows[1] > 0
    assert len(step_files(two.path / "rollouts", 1)) == 1


def test_a_control_group_is_probed_and_recorded_but_never_trained_on(
    bench: Bench,
) -> None:
    run = bench.method("topd-low-loss-q75")
    for line in run.metrics:
        file = run.path / "windows" / f"step_{line['step']:06d}.parquet"
        rows = pq.read_table(file).to_pylist()
        groups = [row["group"] for row in rows]
        assert groups.count("low") == groups.count("high") == line["candidates/num"]
        assert {row["group"] for row in rows if row["divergent"]} <= {"high"}


def test_a_resumed_run_takes_over_as_one_that_was_never_interrupted(
    bench: Bench,
) -> None:
    """The limit of a surprise is a quantile of earlier steps: a checkpoint has it."""
    run = bench.run("surprise-resumed", **METHODS["takeover-surprise"])
    uninterrupted = run.metrics
    rollouts = [recorded(run, "rollouts", step) for step in (1, 2, 3)]
    # As if step 3 had been of more ranks than are there now.
    last = run.path / "rollouts" / "step_000003.parquet"
    shutil.copy(last, last.with_stem(f"{last.stem}-rank1"))
    (run.path / "summary.json").unlink()
    # As if killed after step 2.
    (run.path / "checkpoints" / "latest").write_text("step_2\n")
    driver.resume(run.path)
    for name in ("loss", "takeover/num", "takeover/num_tokens"):
        assert [line[name] for line in run.metrics] == [
            line[name] for line in uninterrupted
        ]
    assert [recorded(run, "rollouts", step) for step in (1, 2, 3)] == rollouts


def test_two_ranks_take_over_as_one(bench: Bench, cluster_address: str) -> None:
    two = bench.run(
        "takeover-two-ranks",
        **TAKEOVER
        | {
            "run": TAKEOVER["run"] | {"steps": 2},
            "learner": {"num_ranks": 2, "zero_stage": 2},
            "cluster": on_actors(cluster_address),
        },
    )
    one = bench.method("takeover")
    assert_same_first_step(two, one)
    assert two.metrics[0]["takeover/num"] == one.metrics[0]["takeover/num"]
    assert len(step_files(two.path / "rollouts", 1)) == 2
    assert sorted(row["rollout_id"] for row in recorded(two, "rollouts", 1)) == sorted(
        row["rollout_id"] for row in recorded(one, "rollouts", 1)
    )


def test_a_following_teacher_survives_a_resume(bench: Bench) -> None:
    parts = METHODS["topd-opsd-following"]
    steps = {"steps": 6, "method": "opsd"}
    run = bench.run("following-resumed", **parts | {"run": steps})
    uninterrupted = losses(run)
    (run.path / "summary.json").unlink()
    # As if killed after step 4.
    (run.path / "checkpoints" / "latest").write_text("step_4\n")
    driver.resume(run.path)
    assert [event["event"] for event in run.events].count("resumed") == 1
    assert losses(run) == uninterrupted


def test_a_frozen_teacher_differs_from_one_that_follows(bench: Bench) -> None:
    parts = METHODS["topd-opsd-following"]
    frozen = bench.run("frozen", **parts | {"teacher": OWN_TEACHER})
    following = bench.method("topd-opsd-following")
    # The teacher changes after step 2.
    assert losses(frozen)[:2] == losses(following)[:2]
    assert losses(frozen)[2] != losses(following)[2]


def test_only_the_rewrites_that_are_wanted_are_trained_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny teacher knows no answers, so being right is decided by the length of a
    response.
    """
    monkeypatch.setattr(
        outcomes, "extract_boxed", lambda text: str(len(text.split()) % 2)
    )
    monkeypatch.setattr(outcomes, "same_answer", lambda predicted, _: predicted == "1")
    run = bench.run("pass", run={"method": "trd"}, rewrite={"keep": "pass"})
    dropped = run.summary["num_dropped_rollouts"]
    assert set(dropped) == {"rewrite is wrong"}
    assert 0 < sum(dropped.values()) < run.summary["num_rollouts"]
    for line in run.metrics:
        assert line["rewrite/num_dropped"] < line["rollout/num"]


def test_stage_1_then_stage_2_then_eval(bench: Bench) -> None:
    """Two stages, as in docs: the teacher's answers, kd on them, TOPD from its export,
    eval.
    """
    answers = bench.folder / "answers.jsonl"
    file = bench.folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(bench.config("recipe")))
    done = topd("generate", file, "--out", answers, "--num", "12", "--max-tokens", "40")
    assert done.code == 0, done.output
    assert len(answers.read_text().splitlines()) == 12
    kd = bench.run(
        "kd",
        run={"method": "kd"},
        prompts={"path": str(answers), "truncated": "keep"},
        rollout={"samples_per_prompt": 1},
    )
    assert [line["rollout/num"] for line in kd.metrics] == [4, 4, 4]
    assert all(line["learner/grad_norm"] > 0 for line in kd.metrics)
    stage_2 = bench.run("stage-2", learner={"model": str(kd.path / "export")})
    assert stage_2.summary["trained_tokens"] > 0
    out = bench.folder / "eval.json"
    done = topd("eval", stage_2.path, "--num", "4", "--out", out)
    assert done.code == 0, done.output
    assert json.loads(out.read_text())


def test_fresh_windows_on_two_engines_and_two_probe_workers_of_vllm(
    joined: Setting, whole: Run
) -> None:
    run = joined.train(
        "vllm-resample",
        "run.steps=2",
        "probe.student=resample",
        "windows.divergence.rule=low_loss_q75",
        "rollout.num_engines=2",
        "probe.num_workers=2",
        "cluster.max_chunks_in_flight=1",
    )
    assert all(line["loss/traj"] > 0 for line in run.metrics)
    rows = pq.read_table(run.path / "windows" / "step_000002.parquet").to_pylist()
    assert all(row["resampled"] for row in rows)
    assert [line["rollout/num"] for line in run.metrics] == [8, 8]
    # Seeds are derived: two engines draw the tokens that one draws.
    tokens = [line["rollout/num_tokens"] for line in run.metrics]
    assert tokens[0] == whole.metrics[0]["rollout/num_tokens"]


@pytest.mark.chaos
def test_self_distillation_that_follows_on_the_actors_and_vllm(
    bench: Bench, joined: Setting
) -> None:
    prompts, forms = bench.values["prompts"]["path"], bench.values["prompts"]["forms"]
    run = joined.train(
        "vllm-trd-opsd",
        "run.steps=3",
        "run.method=trd",
        f"prompts.path={prompts}",
        f"prompts.forms={forms}",
        "prompts.max_form_tokens=8",
        "prompts.max_reference_tokens=16",
        "objective.context=refine_reference",
        "teacher.source=student",
        "teacher.model=null",
        "teacher.follow_every=2",
    )
    assert [line["step"] for line in run.metrics] == [1, 2, 3]
    assert all(line["rewrite/num_tokens"] > 0 for line in run.metrics)
