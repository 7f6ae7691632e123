"""What a resumed run may change is in one table; all else is refused with a reason."""

from typing import Any

import pytest

from topd_ray.config import Config, parse_config
from topd_ray.config.changes import (
    CHANGEABLE,
    Change,
    changes,
    may_change,
    refuse_unchangeable,
)
from topd_ray.errors import UserError


def config(**sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "prompts": {"path": "p"},
        "teacher": {"model": "t"},
        "learner": {"model": "s"},
    }
    for name, fields in sections.items():
        values[name] = values.get(name, {}) | fields
    return parse_config(values, source="test")


def test_changes_are_the_fields_that_differ() -> None:
    old = config(prompts={"columns": {"answer": "gold"}})
    new = config(
        run={"steps": 8},
        rollout={"engine": {"gpus": 1}},
        prompts={"columns": {"answer": None}},
    )
    assert changes(old, old) == []
    assert changes(old, new) == [
        Change("run.steps", None, 8),
        Change("prompts.columns.answer", "gold", None),
        Change("rollout.engine.gpus", 0.0, 1.0),
    ]


def test_every_entry_of_the_table_is_a_field() -> None:
    fields = {change.field for change in changes(config(), config())}
    fields |= set(_all_fields(config(probe={"engine": {}})))
    for pattern in CHANGEABLE:
        prefix = pattern.removesuffix("*")
        assert any(
            field.startswith(prefix) if pattern.endswith("*") else field == pattern
            for field in fields
        ), pattern


def _all_fields(config: Config, prefix: str = "") -> list[str]:
    found: list[str] = []

    def walk(values: dict[str, Any], at: str) -> None:
        for key, value in values.items():
            found.append(f"{at}{key}")
            if isinstance(value, dict):
                walk(value, f"{at}{key}.")

    walk(config.model_dump(mode="json"), prefix)
    return found


@pytest.mark.parametrize(
    "field",
    ["run.steps", "health.min_entropy", "cluster.address", "teacher.engine.cpus"],
)
def test_length_limits_and_place_may_change(field: str) -> None:
    assert may_change(field)


@pytest.mark.parametrize(
    "field",
    [
        "run.seed",
        "objective.lambda_traj",
        "prompts.per_step",
        "learner.lr",
        "rollout.engine.dtype",
        "rollout.engine.backend",
        "a.new_field",
    ],
)
def test_what_the_run_is_may_not_change(field: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_unchangeable(
            [Change("run.steps", 1, 2), Change(field, 1, 2)], way_out="WAY OUT"
        )
    message = str(caught.value)
    assert f"may not change {field} 1 -> 2: " in message
    assert "run.steps" not in message
    assert message.endswith("WAY OUT")
