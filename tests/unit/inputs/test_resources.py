"""Plan of a config: a line on memory for a role, and no actor that idles."""

from typing import Any

import pytest

from topd_ray.config import Config, parse_config
from topd_ray.errors import UserError
from topd_ray.inputs.resources import make_plan, memory_line


def config_of(**sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "prompts": {"path": "p", "per_step": 2},
        "rollout": {"samples_per_prompt": 2},
        "teacher": {"model": "acme/teacher", "size_b": 30.5},
        "learner": {"model": "acme/student", "size_b": 4.0},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return parse_config(values, source="test")


def test_the_memory_of_a_role_is_a_line_with_its_number() -> None:
    config = config_of(
        learner={"num_ranks": 2, "zero_stage": 3}, rollout={"num_engines": 2}
    )
    gib = {role.name: role.gib for role in make_plan(config).roles}
    assert memory_line(config, "learner") == (
        f"topd check estimates {gib['learner']:.3g} GiB for one learner rank: ZeRO 3,"
        " bfloat16: weights, gradients, optimizer, activations, loss"
    )
    assert memory_line(config, "teacher") == (
        f"topd check estimates {gib['teacher']:.3g} GiB for one teacher engine: vllm,"
        " bfloat16: weights, cache, libraries"
    )


def test_every_role_of_a_plan_has_a_line_and_no_other_name_has() -> None:
    config = config_of()
    for role in make_plan(config).roles:
        assert memory_line(config, role.name) is not None
    assert memory_line(config, "nothing") is None
    assert memory_line(config_of(run={"method": "opd"}), "probe") is None


def test_a_model_of_unknown_size_has_no_line() -> None:
    assert memory_line(config_of(learner={"size_b": None}), "learner") is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"rollout": {"num_engines": 5}},
            "rollout.num_engines=5 with prompts.per_step=2 x"
            " rollout.samples_per_prompt=2 = 4 rollouts a step: an engine would never"
            " decode; set rollout.num_engines to at most 4, or raise prompts.per_step",
        ),
        (
            {"teacher": {"num_engines": 5}},
            "teacher.num_engines=5 with prompts.per_step=2 x"
            " rollout.samples_per_prompt=2 = 4 rollouts a step: a teacher would never"
            " score; set teacher.num_engines to at most 4, or raise prompts.per_step",
        ),
        (
            {"probe": {"num_workers": 5}},
            "probe.num_workers=5 with prompts.per_step=2 x"
            " rollout.samples_per_prompt=2 = 4 rollouts a step: a worker would never"
            " probe; set probe.num_workers to at most 4, or raise prompts.per_step",
        ),
        (
            {"learner": {"num_ranks": 5}},
            "learner.num_ranks=5 with prompts.per_step=2 x"
            " rollout.samples_per_prompt=2 = 4 rollouts a step: a rank would train on"
            " nothing; set learner.num_ranks to at most 4, or raise prompts.per_step",
        ),
    ],
)
def test_an_engine_or_a_rank_that_would_idle_is_refused(
    section: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        config_of(**section)
    assert message in str(caught.value)
    for name, fields in section.items():
        config_of(**{name: dict.fromkeys(fields, 4)})


def test_engines_that_only_answer_problems_may_outnumber_the_rollouts() -> None:
    config_of(
        run={"method": "kd"},
        rollout={"num_engines": 5, "samples_per_prompt": 1},
    )
