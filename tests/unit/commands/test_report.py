"""`topd report` on the command line."""

from pathlib import Path
from shutil import copytree

from tests.runs import topd


def test_the_path_of_the_page_is_printed(synthetic: Path, tmp_path: Path) -> None:
    run = copytree(synthetic, tmp_path / "run")
    done = topd("report", run, "--against", synthetic)
    assert (done.code, done.output.splitlines()[-1]) == (0, str(run / "report.html"))


def test_mistakes_are_one_line_and_exit_code_2(synthetic: Path, tmp_path: Path) -> None:
    done = topd("report", tmp_path)
    assert done.code == 2
    assert done.output.endswith("no run folder (no config.yaml in it)\n")
    run = copytree(synthetic, tmp_path / "run")
    (run / "report.html.partial").mkdir()
    done = topd("report", run)
    assert done.code == 2
    assert "no report can be written there (Is a directory)" in done.output
