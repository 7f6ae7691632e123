"""What a study's finished runs leave for another machine."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reproduce.py"
FUNCTIONS = runpy.run_path(str(SCRIPT))


def make_run(runs: Path, name: str, *files: str) -> None:
    (runs / name).mkdir(parents=True)
    for file in files:
        (runs / name / file).write_text(f"{name} {file}", encoding="utf-8")


def test_another_machine_gets_the_finished_runs_alone(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    make_run(here, "a", "config.yaml", "summary.json", "sampled-2x8.json", "log.txt")
    make_run(here, "no-samples-yet", "config.yaml", "summary.json")
    make_run(here, "half", "config.yaml", "metrics.jsonl")
    archive = tmp_path / "runs.tar.xz"

    FUNCTIONS["pack_runs"](here, archive)
    FUNCTIONS["unpack_runs"](archive, there)

    found = {str(file.relative_to(there)) for file in there.rglob("*.*")}
    assert found == {"a/config.yaml", "a/summary.json", "a/sampled-2x8.json"}


def test_a_run_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    make_run(here, "a", "summary.json")
    archive = tmp_path / "runs.tar.xz"
    FUNCTIONS["pack_runs"](here, archive)
    make_run(there, "a", "metrics.jsonl")

    FUNCTIONS["unpack_runs"](archive, there)

    assert [file.name for file in (there / "a").iterdir()] == ["metrics.jsonl"]
