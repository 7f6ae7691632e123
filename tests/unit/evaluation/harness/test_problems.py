"""Rows of benchmarks as problems, and responses graded."""

import re
from typing import Any

import pytest

from topd_ray.errors import UserError
from topd_ray.evaluation.harness.problems import as_problem, grade, mean_share
from topd_ray.evaluation.harness.task_names import TaskSampling, check_request


@pytest.mark.parametrize(
    ("row", "prompt_id", "answer"),
    [
        (
            {"ID": "2031-I-1", "Problem": "q", "Solution": "s", "Answer": 33},
            "2031-I-1",
            "33",
        ),
        ({"id": "4", "problem": "q", "answer": "033"}, "4", "033"),
        (
            {"problem_idx": 3, "problem": "q", "answer": r"\frac{1}{2}"},
            "3",
            r"\frac{1}{2}",
        ),
        ({"question": "q", "answer": 7.0}, "file-000001", "7"),
    ],
)
def test_every_benchmark_s_own_columns_are_read(
    row: dict[str, Any], prompt_id: str, answer: str
) -> None:
    assert as_problem(row, default_id="file-000001", where="here") == {
        "prompt_id": prompt_id,
        "messages": [{"role": "user", "content": "q"}],
        "answer": answer,
    }


@pytest.mark.parametrize(
    "row",
    [{"problem": "q"}, {"answer": "1"}, {"problem": " ", "answer": "1"}, ["q"], {}],
)
def test_a_row_that_lacks_something_is_named(row: object) -> None:
    with pytest.raises(UserError, match="file, line 3: expected"):
        as_problem(row, default_id="", where="file, line 3")


def test_each_response_is_graded_by_its_last_box_as_mathematics() -> None:
    doc = {"messages": [], "answer": "033"}
    responses = [
        r"\boxed{33}",
        r"\boxed{1} or \boxed{033}",
        r"\boxed{\frac{66}{2}}",
        "33",
        "",
    ]
    verdicts = grade(doc, [responses])["correct"]
    assert verdicts == [True, True, True, False, False]


def test_avg_at_k_averages_over_problems() -> None:
    assert mean_share([[True, False], [True, True], [False, False]]) == pytest.approx(
        0.5
    )


@pytest.mark.parametrize(
    ("tasks", "sampling", "expected"),
    [
        (("aime2025",), TaskSampling(), "--task aime2025: expected one of aime24"),
        (("aime2",), TaskSampling(), "did you mean aime2"),
        (("toy", "toy"), TaskSampling(), "name each task once"),
        (
            ("aime24",),
            TaskSampling(samples=4, temperature=0),
            "--samples 4 with --temperature 0",
        ),
        (("mbpp_plus",), TaskSampling(), "add --confirm-run-unsafe-code"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    tasks: tuple[str, ...], sampling: TaskSampling, expected: str
) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        check_request(tasks, sampling, unsafe_code=False)


def test_code_is_run_only_when_that_is_confirmed() -> None:
    check_request(("humaneval_plus",), TaskSampling(samples=4), unsafe_code=True)
