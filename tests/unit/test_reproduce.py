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
    files = ("config.yaml", "summary.json", "metrics.jsonl", "events.jsonl")
    make_run(here, "a", *files, "sampled-2x8.json", "log.txt")
    make_run(here, "no-samples-yet", *files)
    make_run(here, "half", "config.yaml", "metrics.jsonl")
    make_run(here, "lost-a-file", *files[:3], "sampled-2x8.json")
    archive = tmp_path / "runs.tar.xz"

    FUNCTIONS["pack_runs"](here, archive)
    FUNCTIONS["unpack_runs"](archive, there)

    found = {str(file.relative_to(there)) for file in there.rglob("*.*")}
    assert found == {f"a/{name}" for name in (*files, "sampled-2x8.json")}


def test_a_run_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    make_run(here, "a", "config.yaml", "summary.json", "metrics.jsonl", "events.jsonl")
    archive = tmp_path / "runs.tar.xz"
    FUNCTIONS["pack_runs"](here, archive)
    make_run(there, "a", "metrics.jsonl")

    FUNCTIONS["unpack_runs"](archive, there)

    assert [file.name for file in (there / "a").iterdir()] == ["metrics.jsonl"]
