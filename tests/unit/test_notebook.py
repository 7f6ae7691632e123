"""Every block of docs/notebook.md runs on a run folder."""

from contextlib import chdir
from pathlib import Path

import pytest

from tests.pages import DOCS, python_blocks, text_of


def test_the_notebook_answers_its_questions(
    synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "toy-topd").symlink_to(synthetic)
    blocks = python_blocks(text_of(DOCS / "notebook.md"))
    questions = blocks[1:]
    assert len(questions) == 5
    lines = [[line for line in block.splitlines() if line] for block in questions]
    assert max(map(len, lines)) <= 5
    names: dict[str, object] = {}
    with chdir(tmp_path):
        for block in blocks:
            exec(compile(block, "docs/notebook.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "finished 0.338" in shown
    assert "windows/divergent_frac" in shown
    assert "continue_from" in shown
