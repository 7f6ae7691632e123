"""Each study whole, on tiny models: files, numbers that add up, and going on after a
stop.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from topd_ray.errors import UserError
from topd_ray.messages import HIGH, LOW, RANDOM
from topd_ray.reports.correction_tables import common_lead
from topd_ray.reports.probing_windows import false_alarms
from topd_ray.statistics import median
from topd_ray.studies import case, correction, probing


def numbers(folder: Path, study: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / f"{study}.json").read_text())
    return loaded


def without_clock(folder: Path, study: str) -> dict[str, Any]:
    loaded = numbers(folder, study)
    loaded["provenance"].pop("wall_s")
    return loaded


def test_probing_reports_what_its_windows_say(make_study, tmp_path: Path) -> None:
    study = make_study(probing={"kinds": {"few": "w1|w2|3"}, "num_readings": 2})
    probing.run(study)
    out = tmp_path / "out"
    windows = pq.read_table(out / "probing-windows.parquet").to_pydict()
    groups = {
        row["positions"]: row for row in numbers(out, "probing")["tables"]["groups"]
    }
    d_ot = {name: [] for name in groups}
    for name, distance in zip(windows["group"], windows["d_ot"], strict=True):
        d_ot[name].append(distance)
    assert len(d_ot["high loss"]) == len(d_ot["random"]) == len(d_ot["low loss"]) > 0
    for name, row in groups.items():
        assert row["median D_OT"]["value"] == pytest.approx(median(d_ot[name]))
    line = np.quantile(d_ot["low loss"], 0.75)
    rates = {
        row["quantity"]: row for row in numbers(out, "probing")["tables"]["relations"]
    }
    alarms = rates["high-loss positions at or below the low-loss upper quartile"][
        "value"
    ]
    assert alarms["value"] == pytest.approx(
        np.mean(np.array(d_ot["high loss"]) <= line)
    )
    tables = numbers(out, "probing")["tables"]
    few, other = tables["kinds"]
    assert few["windows"] + other["windows"] == len(d_ot["high loss"])
    assert few["windows"] == sum(
        kind == "few" and group == "high loss"
        for kind, group in zip(windows["kind"], windows["group"], strict=True)
    )
    assert 1 <= len(tables["readings"]) <= 4
    assert {row["D_OT"] for row in tables["readings"]} <= set(d_ot["high loss"])
    settings = [
        row["setting"] for row in numbers(out, "probing")["tables"]["sensitivity"]
    ]
    assert settings[:2] == ["as the run", "exact transport"]
    assert {"K 4", "epsilon 0.2", "teacher decodes at temperature 1"} <= set(settings)
    names = {path.name for path in out.glob("*.svg")}
    assert names == {
        f"probing-{which}.svg" for which in ("divergence", "histogram", "scatter")
    }


def test_false_alarms_are_counted_against_the_low_loss_upper_quartile() -> None:
    groups = np.array([HIGH] * 4 + [LOW] * 5 + [RANDOM])
    d_ot = np.array([0.1, 0.4, 0.41, 0.9, 0.0, 0.1, 0.2, 0.4, 0.8, 0.0])
    assert false_alarms(d_ot, groups) == 0.5


def test_a_window_that_was_never_decoded_cannot_be_studied(make_study) -> None:
    with pytest.raises(UserError, match=r"probing\.windows=9 exceeds probe\.window=8"):
        probing.run(make_study(probing={"windows": [9]}))


def test_correction_goes_on_after_a_stop_and_says_the_same(
    make_study, tmp_path: Path
) -> None:
    study = make_study(correction={"lr": 1e-2, "other_lrs": [1e-3], "num_prefixes": 2})
    correction.run(study)
    out = tmp_path / "out"
    first = without_clock(out, "correction")
    prefixes = pq.read_table(out / "correction-prefixes.parquet").to_pydict()
    assert len(set(prefixes["rollout"])) == len(prefixes["rollout"]) == 2
    means = [row["mean D_OT"] for row in first["tables"]["states"][1:]]
    for mean, state in zip(means, ("before", "opd", "topd"), strict=True):
        assert mean["value"] == pytest.approx(np.mean(prefixes[f"d_ot_{state}"]))
    rates = first["tables"]["rates"]
    assert [row["learning rate"] for row in rates] == ["0.01", "0.001"] * 2
    assert [row["window"] for row in rates] == ["the student's"] * 2 + [
        "the teacher's"
    ] * 2
    (kept,) = (out / "cache").glob("*-student-lr0.01.jsonl")
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])  # stopped in mid-write
    correction.run(study)
    assert without_clock(out, "correction") == first
    again = kept.read_text().splitlines()
    assert [line for line in again if line in lines] == lines


def test_correction_needs_something_to_compare(make_study) -> None:
    study = make_study(overrides=["run.method=opd"])
    with pytest.raises(UserError, match="lambda_traj=0"):
        correction.run(study)


def test_the_common_lead_stops_at_the_first_difference() -> None:
    a = np.array([1, 2, 3], np.int32)
    assert common_lead(a, np.array([1, 2, 4], np.int32)) == 2
    assert common_lead(a, np.array([5], np.int32)) == 0
    assert common_lead(a, a[:2]) == 2


def test_the_case_follows_both_methods_from_the_same_start(
    make_study, tmp_path: Path
) -> None:
    case.run(make_study(correction={"lr": 1e-2, "updates": 2}))
    out = tmp_path / "out"
    told = numbers(out, "case")["numbers"]["case"]
    names = [(state["method"], state["updates"]) for state in told["states"]]
    assert names == [("before", 0), ("OPD", 1), ("OPD", 2), ("TOPD", 1), ("TOPD", 2)]
    for state in told["states"]:
        for step in state["steps"]:
            (best, p), *_ = step["student"]
            assert step["token"] == best  # greedy
            assert step["p_student"] == pytest.approx(p)
            assert all(p >= step["p_teacher"] - 1e-6 for _, p in step["teacher"][:1])
    text = (out / "case.md").read_text()
    assert "--- TOPD 2" in text
    assert (out / "case-continuations.png").is_file()


def test_the_case_looks_into_a_given_prompt(make_study, tmp_path: Path) -> None:
    case.run(make_study(case={"prompt": "w3 w4 5"}))
    assert "w3 w4 5" in numbers(tmp_path / "out", "case")["numbers"]["case"]["prompt"]
