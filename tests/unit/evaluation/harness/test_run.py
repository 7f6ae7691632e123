"""The harness knows every task by name; what the hub does not give is said plainly."""

import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from lm_eval.tasks import TaskManager

from topd_ray.errors import UserError
from topd_ray.evaluation.harness.run import load_task, task_paths
from topd_ray.evaluation.harness.task_names import CODE, NAMES, TaskSampling

ROWS = [
    {"prompt_id": "a", "messages": [{"role": "user", "content": "q"}], "answer": "1"}
]


def manager() -> TaskManager:
    return TaskManager(include_path=task_paths(), include_defaults=False)


def test_every_name_resolves_in_the_harness() -> None:
    found = manager()
    assert set(NAMES) <= set(found.all_tasks)
    for name in CODE:
        path = found.task_index[name].yaml_path
        assert "lm_eval" in Path(path).parts, f"{name} is not the stock task"


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (TaskSampling(), (16, True, 0.6, 0.95, 8000)),
        (TaskSampling(samples=2, max_tokens=9), (2, True, 0.6, 0.95, 9)),
        (TaskSampling(temperature=1.0, top_p=0.5), (16, True, 1.0, 0.5, 8000)),
        (TaskSampling(samples=1, temperature=0.0), (1, False, 0.0, 1.0, 8000)),
    ],
)
def test_options_win_over_the_task_file(
    sampling: TaskSampling, expected: tuple[int, bool, float, float, int]
) -> None:
    task = load_task("aime24", sampling, ROWS)
    options = task.get_config("generation_kwargs")
    assert options["until"] == []
    assert (
        task.get_config("repeats"),
        *(
            options[key]
            for key in ("do_sample", "temperature", "top_p", "max_gen_toks")
        ),
    ) == expected


def test_data_that_the_hub_does_not_give_is_an_error_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    expected = "task aime25: its problems could not be had from the hub: "
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        load_task("aime25", TaskSampling(), None)
    assert "math-ai/aime25" in str(error.value)
    assert "--data" in str(error.value)


def test_a_run_does_not_import_the_harness() -> None:
    code = (
        "import sys, topd_ray.commands.evaluate, topd_ray.evaluation\n"
        "assert 'lm_eval' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
