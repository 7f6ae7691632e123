"""`topd eval` on the real harness: our task files, the shipped student, transformers
underneath.
"""

import json
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from topd_ray.commands.evaluate import TOY_PROBLEMS, evaluate_folder, parse_variables
from topd_ray.config import EngineConfig, parse_config
from topd_ray.engines.open import open_generation
from topd_ray.errors import UserError
from topd_ray.evaluation import greedy_accuracy
from topd_ray.evaluation.harness.task_names import TaskSampling
from topd_ray.inputs.prompts import load_problems

STUDENT = TOY_PROBLEMS.parent / "student"
QUESTIONS = ["what is 3 + 4 modulo 10 ?", "what is ( 2 * 4 ) - 1 modulo 10 ?"]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def benchmark_file(task: str, folder: Path) -> Path:
    """Two problems of our own in the columns of `task`'s data."""
    rows: list[dict[str, Any]]
    if task == "aime24":
        rows = [
            {"ID": f"own-{i}", "Problem": question, "Solution": "none", "Answer": 7}
            for i, question in enumerate(QUESTIONS)
        ]
    elif task == "aime25":
        rows = [
            {"id": str(i), "problem": question, "answer": "007"}
            for i, question in enumerate(QUESTIONS)
        ]
    else:
        rows = [
            {
                "problem_idx": i,
                "problem": question,
                "answer": r"\frac{14}{2}",
                "problem_type": [],
            }
            for i, question in enumerate(QUESTIONS)
        ]
        return write_rows(folder / f"{task}.parquet", rows)
    return write_rows(folder / f"{task}.jsonl", rows)


def samples_beside(out: Path) -> list[dict[str, Any]]:
    text = out.with_suffix(".samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("task", ["aime24", "aime25", "hmmt25_feb"])
def test_a_contest_s_task_file_runs_on_a_local_file_of_its_columns(
    task: str, tmp_path: Path
) -> None:
    out = tmp_path / "figures.json"
    report = evaluate_folder(
        STUDENT,
        tasks=[task],
        data=benchmark_file(task, tmp_path),
        sampling=TaskSampling(samples=4, temperature=1.5, max_tokens=40),
        backend="hf",
        out=out,
    )
    samples = samples_beside(out)
    assert len(samples) == 8
    assert len({sample["seed"] for sample in samples}) == 8
    by_problem = defaultdict(set)
    for sample in samples:
        by_problem[sample["prompt_id"]].add(sample["response"])
        assert r"put your final answer within \boxed{}." in sample["prompt"]
    assert len(by_problem) == 2
    assert all(len(responses) > 1 for responses in by_problem.values()), (
        "samples are copies"
    )
    figures = json.loads(out.read_text())["tasks"][task]
    assert figures["avg"]["value"] == pytest.approx(
        sum(s["correct"] for s in samples) / 8
    )
    assert figures["num_truncated"] == sum(s["truncated"] for s in samples)
    assert figures["mean_tokens"] == sum(s["num_tokens"] for s in samples) / 8
    assert (figures["temperature"], figures["top_p"], figures["samples"]) == (
        1.5,
        0.95,
        4,
    )
    assert list(report.tasks[0].pass_at) == [1, 2, 4]


def test_a_contest_is_sampled_sixteen_times_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    report = evaluate_folder(
        STUDENT,
        tasks=["aime25"],
        data=benchmark_file("aime25", tmp_path),
        num_problems=1,
        sampling=TaskSampling(max_tokens=4),
        backend="hf",
    )
    (one,) = report.tasks
    assert one.num_problems == 1
    assert one.sampling == TaskSampling(
        samples=16, temperature=0.6, top_p=0.95, max_tokens=4, seed=0
    )
    assert list(one.pass_at) == [1, 2, 4, 8, 16]


def test_the_same_seed_gives_the_same_samples_and_another_does_not(
    tmp_path: Path,
) -> None:
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        evaluate_folder(
            STUDENT,
            tasks=["toy"],
            num_problems=2,
            sampling=TaskSampling(samples=2, temperature=1.0, max_tokens=30, seed=seed),
            backend="hf",
            out=tmp_path / f"{name}.json",
        )
        texts.append((tmp_path / f"{name}.samples.jsonl").read_text())
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_greedy_answers_are_those_of_the_evaluation_in_training(tmp_path: Path) -> None:
    engine = EngineConfig(backend="hf", dtype="float32")
    values = {
        "prompts": {"path": str(TOY_PROBLEMS), "max_tokens": 100},
        "teacher": {"model": str(STUDENT)},
        "learner": {"model": str(STUDENT)},
        "evaluation": {"path": str(TOY_PROBLEMS), "num_problems": 24},
    }
    config = parse_config(values, source="test")
    opened = open_generation(STUDENT, engine, max_model_len=512)
    problems = load_problems(config, STUDENT)
    expected = greedy_accuracy(opened, problems, folder=STUDENT, max_tokens=120)
    out = tmp_path / "figures.json"
    report = evaluate_folder(
        STUDENT,
        problems=TOY_PROBLEMS,
        num_problems=24,
        sampling=TaskSampling(max_tokens=120),
        backend="hf",
        out=out,
    )
    (one,) = report.tasks
    assert one.pass_at[1].value == pytest.approx(expected.share, abs=1e-12)
    assert one.num_truncated == expected.num_truncated
    assert one.mean_tokens * 24 == expected.num_tokens
    assert one.sampling.temperature == 0
    assert samples_beside(out)[0]["prompt"].count(r"\boxed") == 0


def test_whole_conversations_are_asked_not_only_their_last_turn(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "what"},
                {"role": "user", "content": "is 3"},
                {"role": "assistant", "content": "which equals 3"},
                {"role": "user", "content": "+ 4 ?"},
            ],
            "answer": 7,
        },
        {"prompt": QUESTIONS[0], "answer": "7"},
    ]
    out = tmp_path / "figures.json"
    evaluate_folder(
        STUDENT,
        problems=write_rows(tmp_path / "own.jsonl", rows),
        sampling=TaskSampling(max_tokens=4),
        backend="hf",
        out=out,
    )
    first = samples_beside(out)[0]["prompt"]
    places = [
        first.index(words)
        for words in ("system what", "user is 3", "equals 3", "+ 4 ?")
    ]
    assert places == sorted(places)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What a run leaves: its config and its student, here the one that ships."""
    folder = tmp_path / "run"
    shutil.copytree(STUDENT, folder / "export")
    config = {
        "prompts": {"path": str(TOY_PROBLEMS), "max_tokens": 100},
        "rollout": {
            "max_response_tokens": 30,
            "engine": {"backend": "hf", "dtype": "float32", "max_num_seqs": 4},
        },
        "teacher": {"model": str(STUDENT)},
        "learner": {"model": str(STUDENT)},
        "evaluation": {"path": str(TOY_PROBLEMS), "num_problems": 3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_folder_brings_its_problems_its_limits_and_its_engine(
    run_folder: Path,
) -> None:
    report = evaluate_folder(run_folder, sampling=TaskSampling())
    (one,) = report.tasks
    assert (report.backend, one.task, one.source) == (
        "hf",
        "problems",
        str(TOY_PROBLEMS),
    )
    assert (one.num_problems, one.sampling.max_tokens) == (3, 30)
    assert (one.sampling.temperature, one.sampling.samples) == (0, 1)


def test_a_student_is_asked_under_the_template_that_it_was_trained_with(
    run_folder: Path, tmp_path: Path
) -> None:
    """By the run's folder or by its export; an option says otherwise."""
    (run_folder / "export" / "chat_template.jinja").write_text(
        "{{ messages[0].content }} {{ 'yes' if enable_thinking else 'no' }}"
    )
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    config["prompts"]["chat_template_kwargs"] = {"enable_thinking": True}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "figures.json"
    ends = []
    for path, variables in (
        (run_folder, None),
        (run_folder / "export", None),
        (run_folder, {"enable_thinking": False}),
    ):
        evaluate_folder(
            path,
            problems=TOY_PROBLEMS,
            num_problems=1,
            sampling=TaskSampling(max_tokens=2),
            backend="hf",
            variables=variables,
            out=out,
        )
        ends.append(samples_beside(out)[0]["prompt"].split()[-1])
    assert ends == ["yes", "yes", "no"]


@pytest.mark.parametrize("text", ["{", "[1]", "true"])
def test_variables_of_the_template_are_a_json_object(text: str) -> None:
    assert parse_variables(None) is None
    assert parse_variables('{"a": 1}') == {"a": 1}
    with pytest.raises(UserError, match=r"--chat-template-kwargs .*: expected a JSON"):
        parse_variables(text)


def test_several_samples_of_a_run_s_own_problems_are_drawn_not_copied(
    run_folder: Path,
) -> None:
    report = evaluate_folder(
        run_folder, num_problems=1, sampling=TaskSampling(samples=2)
    )
    assert report.tasks[0].sampling.temperature == 0.6
    assert report.tasks[0].num_problems == 1


def test_a_run_that_has_not_ended_has_nothing_to_evaluate(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "export")
    with pytest.raises(UserError, match=re.escape(f"{run_folder} trained: ")):
        evaluate_folder(run_folder, sampling=TaskSampling())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "no task is given; give --task"),
        ({"tasks": ["problems"]}, "--task problems: --data is missing"),
        ({"tasks": ["toy"], "backend": "fake"}, "--backend fake: expected vllm or hf"),
        ({"tasks": ["toy"], "out": Path("/nowhere/a.json")}, "no such folder /nowhere"),
        (
            {"tasks": ["aime24"], "data": Path("nowhere.jsonl")},
            "nowhere.jsonl: no such file",
        ),
        ({"tasks": ["toy"], "problems": Path("x.jsonl")}, "give the one or the other"),
        (
            {"tasks": ["aime24", "aime25"], "data": Path("x.jsonl")},
            "holds the problems of one task, but 2 are given (aime24, aime25)",
        ),
        ({"tasks": ["humaneval_plus"]}, "add --confirm-run-unsafe-code"),
        (
            {"tasks": ["aime24"], "sampling": TaskSampling(samples=2, temperature=0)},
            "--samples 2",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_is_loaded(
    asked: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        evaluate_folder(STUDENT, **({"sampling": TaskSampling()} | asked))


@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        (
            "aime24",
            [{"Problem": "q", "Answer": 1}, {"Problem": "q"}],
            "line 2: expected the col",
        ),
        ("aime24", [], "holds no prompts"),
        ("aime25", [{"prompt": "q"}], "has no `answer` to compare with"),
        ("problems", [{"text": "q", "answer": "1"}], "line 1: expected `messages`"),
        ("problems", [{"messages": [], "answer": "1"}], "has no text of a user in it"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(
    task: str, rows: list[dict[str, Any]], expected: str, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        evaluate_folder(STUDENT, tasks=[task], data=data, sampling=TaskSampling())
    assert str(data) in str(error.value)
