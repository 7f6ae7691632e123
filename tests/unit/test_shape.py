import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "shape.py"


@pytest.fixture
def shape(monkeypatch):
    spec = importlib.util.spec_from_file_location("shape", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "shape", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree_of(shape, tmp_path):
    def write(**files):
        for name, text in files.items():
            path = tmp_path / "topd_ray" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return shape.Tree(tmp_path)

    return write


def test_the_largest_package_is_the_one_with_most_lines(shape, tree_of):
    tree = tree_of(
        driver__loop="x = 1\n" * 3, driver__step="x = 1\n" * 3, cli="y = 2\n" * 4
    )
    assert shape.largest_package(tree).value == "driver 60 %"


def test_any_counts_in_the_packages_of_the_actors_only(shape, tree_of):
    text = "from typing import Any\nx: Any = 1\ny: list[Any] = []\n"
    tree = tree_of(driver__loop=text, windows__pack=text)
    assert shape.any_types(tree).value == "2"


def test_a_step_loop_begins_steps_of_a_pipeline_and_lets_them_learn(shape, tree_of):
    tree = tree_of(
        driver__loop="self.pipeline.begin(1)\nself.pipeline.learn(1)\n",
        driver__once="pipeline.begin(1)\n",
        engines__stepping="stepper.begin(1)\nstepper.learn(1)\n",
    )
    assert shape.step_loops(tree).where == [
        "topd_ray/driver/loop.py:1 begins steps and lets them learn"
    ]


def test_unpacking_a_result_is_no_tuple_assignment(shape, tree_of):
    tree = tree_of(cli="a, b = 1, 2\nc, d = divmod(7, 2)\ne = (1, 2)\n")
    assert shape.tuple_assignments(tree).where == ["topd_ray/cli.py:1 a, b = (1, 2)"]


def test_comments_count_beside_code_and_docstrings_do_not(shape, tree_of):
    text = (
        '"""What\n# is in it."""\n# a reason\nx = 1  # another\ny = 2  # noqa: E501\n'
    )
    assert shape.comments(tree_of(cli=text)).value == "100.0"


def test_a_function_of_the_maths_needs_the_sections_that_it_has_use_for(
    shape, tree_of, tmp_path
):
    (tmp_path / "pyproject.toml").write_text(
        "[[tool.importlinter.contracts]]\n"
        f'name = "{shape.MATHS_CONTRACT}"\n'
        'source_modules = ["topd_ray.transport"]\n'
    )
    tree = tree_of(
        transport__plan=(
            'def good(x: int) -> int:\n    """Say.\n\n    Args:\n        x: one.\n\n'
            '    Returns:\n        Another.\n    """\n    return x\n'
            'def bad(x: int) -> int:\n    """Say."""\n    raise ValueError(x)\n'
            "def _private(x: int) -> int:\n    return x\n"
        ),
        cli="def other(x: int) -> int:\n    return x\n",
    )
    measured = shape.maths_docstrings(tree)
    assert measured.value == "1 of 2"
    assert measured.where == [
        "topd_ray/transport/plan.py:11 bad lacks Args, Returns, Raises"
    ]


def test_two_classes_or_aliases_of_one_name_are_twins(shape, tree_of):
    tree = tree_of(
        cli="class Span: pass\n", driver__step="Span = tuple[int, int]\nN = 3\n"
    )
    assert [row.rpartition(" ")[0] for row in shape.twin_classes(tree).where] == [
        "topd_ray/cli.py:1",
        "topd_ray/driver/step.py:1 Span = tuple[int,",
    ]


def test_a_layer_is_a_class_that_passes_a_call_of_a_handle_on(shape, tree_of):
    worker = "class Worker:\n    def score(self): pass\n"
    tree = tree_of(
        actors__handles="class TeacherHandle:\n    async def score(self): pass\n",
        actors__teacher=worker,
        actors__protocols="class Scores(Protocol):\n    def score(self): pass\n",
        simulate__workers=worker,
        engines__vllm=worker,
    )
    assert shape.layers(tree).value == "score 2"


def test_the_table_of_this_checkout_has_every_measure_and_loads_no_torch():
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(SCRIPT)!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "assert not {'torch', 'ray'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for word in ("package:", "tour:", "layers:", "twins:", "unset:", "untested:"):
        assert word in done.stdout
