import json
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topd_ray.records.timeline import (
    TraceWriter,
    Work,
    busy_and_waits,
    read_trace,
)


def work(
    actor: str, what: str, chunk: int | None, began_s: float, ended_s: float
) -> Work:
    return Work(
        actor=actor, what=what, step=1, chunk=chunk, began_s=began_s, ended_s=ended_s
    )


def shares(
    *works: Work, began_s: float = 0.0, ended_s: float = 10.0
) -> dict[str, float]:
    found = busy_and_waits(works, began_s=began_s, ended_s=ended_s)
    return {name: value for name, value in found.items() if value}


@st.composite
def days(draw: st.DrawFn) -> list[Work]:
    """Works at any time, overlapping as they like."""
    works = []
    for _ in range(draw(st.integers(0, 25))):
        began_s = draw(st.floats(-5, 15, allow_nan=False))
        kind = draw(st.sampled_from(["rollout", "teacher", "learner"]))
        works.append(
            Work(
                actor=f"{kind}[{draw(st.integers(0, 2))}]",
                what=draw(st.sampled_from(["roll_out", "score", "accumulate"])),
                step=draw(st.integers(1, 2)),
                chunk=draw(st.none() | st.integers(0, 3)),
                began_s=began_s,
                ended_s=began_s + draw(st.floats(0, 8, allow_nan=False)),
            )
        )
    return works


@given(days())
def test_the_shares_of_a_kind_add_up_to_one(works: list[Work]) -> None:
    found = busy_and_waits(
        works, began_s=0.0, ended_s=10.0, actors=["teacher[0]", "judge[0]"]
    )
    sums: dict[str, float] = defaultdict(float)
    for name, value in found.items():
        assert value >= 0
        sums[name.partition("/")[2].split("_")[0]] += value
    assert sums.keys() == {"judge", "teacher"} | {one.kind for one in works}
    assert all(value == pytest.approx(1.0, abs=1e-9) for value in sums.values())
    assert found["wait/judge_on_step_frac"] == 1.0


def test_a_gap_is_charged_to_the_stage_that_the_next_chunk_was_in() -> None:
    found = shares(
        work("rollout[0]", "roll_out", 0, 0, 4),
        work("teacher[0]", "score", 0, 5, 7),
        work("learner[0]", "accumulate", 0, 7, 10),
    )
    assert found["wait/learner_on_roll_out_frac"] == pytest.approx(0.4)
    assert found["wait/learner_on_queue_frac"] == pytest.approx(0.1)
    assert found["wait/learner_on_score_frac"] == pytest.approx(0.2)
    assert found["busy/learner_frac"] == pytest.approx(0.3)


def test_what_comes_after_the_last_work_and_before_a_rollout_is_the_steps() -> None:
    found = shares(work("rollout[0]", "roll_out", 0, 2, 4))
    assert found == pytest.approx(
        {"busy/rollout_frac": 0.2, "wait/rollout_on_step_frac": 0.8}
    )


def test_before_a_chunk_was_begun_its_first_actor_is_waited_for() -> None:
    """A teacher that waits for chunk 1 also waits while the engine is taking new
    weights.
    """
    found = shares(
        work("rollout[0]", "update", None, 1, 3),
        work("rollout[0]", "roll_out", 0, 3, 6),
        work("rollout[0]", "roll_out", 1, 6, 9),
        work("teacher[0]", "score", 1, 9, 10),
    )
    assert found["wait/teacher_on_step_frac"] == pytest.approx(0.1)
    assert found["wait/teacher_on_update_frac"] == pytest.approx(0.2)
    assert found["wait/teacher_on_roll_out_frac"] == pytest.approx(0.6)


def test_other_steps_and_time_outside_the_window_do_not_count() -> None:
    other = Work(
        actor="rollout[0]", what="roll_out", step=0, chunk=0, began_s=0, ended_s=9
    )
    found = shares(other, work("teacher[0]", "score", 0, 6, 9), began_s=5, ended_s=8)
    assert found["busy/rollout_frac"] == 1.0
    assert found["busy/teacher_frac"] == pytest.approx(2 / 3)
    assert found["wait/teacher_on_step_frac"] == pytest.approx(1 / 3)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"window of 0 s"):
        busy_and_waits([], began_s=1.0, ended_s=1.0)


def test_a_trace_has_a_named_row_an_actor_and_two_where_calls_overlap(
    tmp_path: Path,
) -> None:
    path = tmp_path / "trace.json"
    with TraceWriter(path, epoch_s=0.0) as trace:
        trace.add(
            [
                work("teacher[0]", "continue_from", 1, 2, 5),
                work("teacher[0]", "score", 2, 3, 4),
                work("rollout[0]", "roll_out", 1, 0, 2),
            ]
        )
    events = json.loads(path.read_text())
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = {names[e["tid"]]: e for e in events if e["ph"] == "X"}
    assert spans.keys() == {"rollout[0]", "teacher[0]", "teacher[0]'"}
    assert spans["teacher[0]"]["name"] == "continue_from 1"
    assert (spans["teacher[0]"]["ts"], spans["teacher[0]"]["dur"]) == (
        2_000_000,
        3_000_000,
    )
    assert spans["teacher[0]'"]["args"] == {
        "actor": "teacher[0]",
        "what": "score",
        "step": 1,
        "chunk": 2,
        "tokens": 0,
    }


def test_a_trace_file_is_json_once_closed_and_goes_on_after_a_crash(
    tmp_path: Path,
) -> None:
    path = tmp_path / "trace.json"
    with TraceWriter(path) as first:
        first.add([work("rollout[0]", "roll_out", 0, 0, 1)])
        first.add([work("rollout[0]", "roll_out", 1, 1, 2)])
    assert json.loads(path.read_text())
    cut = path.read_text()[
        :-7
    ]  # as if the process had died while it wrote the last event
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(cut)
    path.write_text(cut)
    with TraceWriter(path) as second:
        second.add([work("rollout[0]", "roll_out", 1, 5, 6)])
    spans = [e for e in json.loads(path.read_text()) if e["ph"] == "X"]
    assert [(e["pid"], e["args"]["chunk"]) for e in spans] == [(1, 0), (2, 1)]


def test_a_trace_without_works_is_json_too(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "trace.json"):
        pass
    assert json.loads((tmp_path / "trace.json").read_text()) == []


def test_a_trace_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    works = [
        Work("rollout[0]", "roll_out", 3, 1, 1.5, 2.25, num_tokens=70),
        Work("learner[1]", "step", 3, None, 4.0, 4.5),
    ]
    with TraceWriter(tmp_path / "trace.json", epoch_s=0.0) as trace:
        trace.add(works)
    assert read_trace(tmp_path / "trace.json") == works


def test_a_trace_is_in_the_time_of_this_machine(tmp_path: Path) -> None:
    before_s = time.time()
    now_s = time.monotonic()
    with TraceWriter(tmp_path / "trace.json") as trace:
        trace.add([Work("learner[0]", "step", 1, None, now_s, now_s + 1)])
    (work_read,) = read_trace(tmp_path / "trace.json")
    assert before_s - 0.1 <= work_read.began_s <= time.time() + 0.1
