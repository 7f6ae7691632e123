"""The calls of a step as a table."""

from topd_ray.records.timeline import Work
from topd_ray.records.timeline_file import SCHEMA, timeline_table


def test_calls_are_in_order_with_seconds_since_the_step_began() -> None:
    works = [
        Work("learner[0]", "step", 3, None, began_s=108.0, ended_s=109.5),
        Work("teacher[1]", "score", 3, 2, began_s=99.0, ended_s=101.0, num_tokens=40),
    ]
    table = timeline_table(works, began_s=100.0)
    assert table.schema == SCHEMA
    assert table.to_pylist() == [
        {
            "actor": "teacher[1]",
            "stage": "teacher",
            "call": "score",
            "chunk": 2,
            "began_s": -1.0,
            "ended_s": 1.0,
            "num_tokens": 40,
        },
        {
            "actor": "learner[0]",
            "stage": "learner",
            "call": "step",
            "chunk": None,
            "began_s": 8.0,
            "ended_s": 9.5,
            "num_tokens": None,
        },
    ]
