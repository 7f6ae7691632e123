import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "results.py"


@pytest.fixture
def results(tmp_path):
    spec = importlib.util.spec_from_file_location("results", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CLAIMS, module.FAILURES = tmp_path, tmp_path / "failures.json"
    return module


def leave(
    folder,
    name,
    *,
    stem=None,
    script="bench_ot",
    figure="7.5 [7, 8], 5 pairs",
    met=True,
):
    record = {
        "name": name,
        "claim": f"the claim {name}",
        "against": "a | b",
        "goal": ">= 5x",
        "figure": figure,
        "met": met,
        "setting": "Two threads.",
        "details": [{"k": 50, "error": 0.123456}],
        "words": "The floor.",
        "command": f"python benchmarks/{script}.py",
        "hardware": "a machine",
        "commit": "0123456789",
        "dirty": True,
        "date": "2026-01-01",
    }
    (folder / f"{stem or name}.json").write_text(json.dumps(record), encoding="utf-8")


def test_every_owed_claim_is_a_row_in_the_fixed_order_and_unknown_ones_come_last(
    results, tmp_path
):
    for name in ("zeta", "start", "ot_speed"):
        leave(tmp_path, name)
    lines = results.overview(results.read_claims(), [])
    assert len(lines) == len(results.ROWS) + 1
    states = [line[""] for line in lines]
    places = [states.index("met"), len(states) - 2, len(states) - 1]
    assert [lines[place]["claim"][-8:] for place in places] == [
        "ot_speed",
        "im start",
        "aim zeta",
    ]
    assert states.count("not measured") == len(results.ROWS) - 2


def test_a_missed_goal_shows_with_its_words_commit_and_table(results, tmp_path):
    leave(tmp_path, "ot_speed", met=False)
    text = results.section(results.read_claims(), ["bench_loss"])
    assert "**missed**" in text
    assert "commit 0123456 with changes, 2026-01-01" in text
    assert "The floor." in text
    assert "| 50 | 0.1235 |" in text
    assert "a \\| b" in text
    assert "Failed in the last run: bench_loss." in text
    assert text.count("| failed |") == sum(
        row.script == "bench_loss" for row in results.ROWS
    )


def test_a_gpu_figure_stands_beside_the_row_of_the_cpu(results, tmp_path):
    leave(tmp_path, "ot_speed", stem="ot_speed.gpu")
    lines = results.overview(results.read_claims(), [])
    place = next(i for i, line in enumerate(lines) if line["claim"].endswith("(GPU)"))
    assert lines[place + 1][""] == "not measured"
    leave(tmp_path, "ot_speed")
    assert len(results.overview(results.read_claims(), [])) == len(lines)


def test_a_failing_script_leaves_no_old_figure_and_stops_no_other(results, tmp_path):
    leave(tmp_path, "old", script="bench_bad")
    leave(tmp_path, "kept", script="bench_other")
    bad, good = tmp_path / "bench_bad.py", tmp_path / "bench_good.py"
    bad.write_text("raise SystemExit(3)", encoding="utf-8")
    good.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    assert results.run_scripts([bad, good], gpu=False) == ["bench_bad"]
    assert (tmp_path / "ran").exists()
    assert [claim["name"] for claim in results.read_claims()] == ["kept"]
    assert results.read_failures() == ["bench_bad"]


def test_only_what_lies_between_the_marks_is_replaced(results):
    page = f"before\n{results.BEGIN}old{results.END}\nafter\n"
    new = results.replaced(page, "new")
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "old" not in new
    assert results.replaced(new, "new") == new
    assert "## Speed" in results.replaced("a page\n", "new")
