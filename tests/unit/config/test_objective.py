from typing import Any

import pytest

from topd_ray.config import METHODS, Config, dump_config, load_config, parse_config
from topd_ray.errors import UserError


def config(method: str, **sections: Any) -> Config:
    teacher = {} if method == "opsd" else {"model": "t"}
    values: dict[str, Any] = {
        "run": {"method": method},
        "prompts": {"path": "p"},
        "teacher": teacher,
        "learner": {"model": "s"},
    }
    for section, fields in sections.items():
        values[section] = values.get(section, {}) | fields
    return parse_config(values, source="test")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_set_of_parts_that_goes_together(method: str) -> None:
    found = config(method)
    for section, parts in METHODS[method].items():
        for field, value in parts.items():
            assert getattr(getattr(found, section), field) == value


@pytest.mark.parametrize(
    ("field", "value", "way_out"),
    [
        ("temperature", 0.6, "set rollout.temperature=1,"),
        ("temperature", 0.0, "set rollout.temperature=1,"),
        ("top_p", 0.95, "set rollout.top_p=1,"),
        ("top_k", 20, "set rollout.top_k=0,"),
    ],
)
def test_a_sampled_signal_needs_samples_of_the_student_itself(
    field: str, value: float, way_out: str
) -> None:
    tempered = {field: value}
    for method in ("opd", "topd"):
        config(method, rollout=tempered)
        with pytest.raises(UserError, match=rf"rollout\.{field}={value:g} .*{way_out}"):
            config(method, rollout=tempered, teacher={"signal": "sampled"})


def test_a_method_is_the_same_run_as_its_parts_spelled_out() -> None:
    parts = {"trajectory": "given", "divergence": "forward_kl", "kd_ratio": 0.5}
    named = config("kd")
    spelled = config("opd", objective=parts, rollout={"samples_per_prompt": 1})
    assert named.objective == spelled.objective
    assert named.rollout == spelled.rollout


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_config_reads_back_to_itself(method: str, tmp_path: Any) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config(method)))
    assert load_config(file) == config(method)


def test_what_a_config_says_itself_wins_over_its_method() -> None:
    found = config(
        "opsd", objective={"divergence": "reverse_kl"}, teacher={"follow_every": 10}
    )
    assert found.objective.divergence == "reverse_kl"
    assert (found.objective.context, found.teacher.source) == ("reference", "student")


def test_topd_composes_with_self_distillation_and_with_every_signal() -> None:
    own = config("opsd", objective={"lambda_traj": 0.3})
    assert own.uses_probes
    for signal in ("topk", "sampled"):
        assert config("topd", teacher={"signal": signal}).uses_probes


def test_trd_composes_with_self_distillation() -> None:
    found = config(
        "trd",
        objective={"context": "refine_reference"},
        teacher={"source": "student", "model": None},
    )
    assert (found.uses_rewrites, found.uses_probes, found.num_probe_workers) == (
        True,
        False,
        0,
    )
    assert found.teacher_model == "s"


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ("forward", {"divergence": "forward_kl"}),
        ("forward, clipped", {"divergence": "forward_kl", "token_clip": 0.1}),
        ("reverse", {"divergence": "reverse_kl"}),
    ],
)
def test_the_dense_baselines_of_trd_are_settings(
    settings: str, parts: dict[str, Any]
) -> None:
    assert not config("opd", objective=parts).uses_probes, settings
    assert not config(
        "opd", teacher={"signal": "topk", "top_k": 32, "tail": "renormalise"}
    ).uses_probes


def test_a_teacher_with_more_in_its_prompt_gets_the_room_for_it() -> None:
    plain, refine = config("opd"), config("trd")
    assert (
        plain.teacher_context_tokens == plain.student_context_tokens == 800 + 8000 + 1
    )
    assert refine.student_context_tokens == 800 + 8000 + 1
    assert refine.teacher_context_tokens == 800 + 8000 + 512 + 8000 + 1
    assert config("opsd").teacher_context_tokens == 800 + 4096 + 512 + 8000 + 1


@pytest.mark.parametrize(
    ("method", "sections", "message"),
    [
        ("opd", {"objective": {"lambda_traj": 0.3}}, "with run.method=opd is topd"),
        ("topd", {"objective": {"lambda_traj": 0}}, "with run.method=topd is opd"),
        ("opsd", {"teacher": {"model": "t"}}, "the teacher is learner.model"),
        ("opd", {"teacher": {"model": None}}, "teacher.model is missing"),
        (
            "opsd",
            {"objective": {"context": "plain"}},
            "its own teacher with nothing more",
        ),
        ("opd", {"teacher": {"follow_every": 5}}, "needs teacher.source=student"),
        (
            "opsd",
            {"teacher": {"follow_every": 7}},
            "run.checkpoint_every=50 is no multiple",
        ),
        ("trd", {"objective": {"context": "plain"}}, "are for rewrites, and only they"),
        (
            "opd",
            {"objective": {"context": "refine"}},
            "are for rewrites, and only they",
        ),
        ("trd", {"objective": {"lambda_traj": 0.3}}, "the student's own rollouts"),
        ("kd", {"objective": {"downweight": "low_ot"}}, "the student's own rollouts"),
        (
            "kd",
            {"objective": {"context": "reference"}},
            "scored under the prompt they answer",
        ),
        ("kd", {"rollout": {"samples_per_prompt": 2}}, "rollout.samples_per_prompt=2"),
        ("opd", {"objective": {"kd_ratio": 0.5}}, "set kd_ratio=1"),
        (
            "opd",
            {
                "objective": {"divergence": "forward_kl"},
                "teacher": {"signal": "sampled"},
            },
            "teacher.signal=sampled estimates the reverse KL",
        ),
        ("trd", {"teacher": {"signal": "sampled"}}, "teacher.signal=sampled estimates"),
        (
            "opd",
            {"objective": {"token_clip": 0.1}, "teacher": {"signal": "sampled"}},
            "no divergence to clip",
        ),
        (
            "opd",
            {
                "objective": {"forward_above_entropy": 1.0},
                "teacher": {"signal": "topk"},
            },
            "needs the full vocabulary",
        ),
        (
            "opd",
            {"objective": {"forward_above_entropy": 1.0, "divergence": "jsd"}},
            "adds forward to reverse KL",
        ),
        (
            "trd",
            {"objective": {"select": "entropy_divergence"}},
            "on its own rollouts only",
        ),
        (
            "kd",
            {"rollout": {"max_staleness": 1, "samples_per_prompt": 1}},
            "cannot be stale",
        ),
        (
            "opsd",
            {"rollout": {"max_staleness": 1}, "teacher": {"follow_every": 10}},
            "rollout.max_staleness=1 with teacher.follow_every=10",
        ),
        (
            "topd",
            {"rollout": {"max_staleness": 2}, "probe": {"student": "resample"}},
            "rollout.max_staleness=2 with probe.student=resample",
        ),
        (
            "opd",
            {
                "objective": {"downweight": "low_ot"},
                "windows": {"divergence": {"rule": "absolute", "threshold": 0.1}},
            },
            "table 2 takes the bottom quantile",
        ),
        (
            "opd",
            {
                "objective": {"downweight": "low_ot"},
                "candidates": {"loss": "log_ratio"},
            },
            "set candidates.loss=reverse_kl",
        ),
        (
            "opd",
            {"objective": {"downweight": "low_ot"}, "probe": {"student": "resample"}},
            "set probe.student=rollout",
        ),
        (
            "opd",
            {
                "objective": {"downweight": "matched_high_ot"},
                "learner": {"num_ranks": 2},
            },
            "matched_high_ot with learner.num_ranks=2",
        ),
        ("opd", {"cluster": {"placement": "inline"}}, "one vLLM engine at most"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_by_name(
    method: str, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config(method, **sections)


def test_inline_takes_one_of_each() -> None:
    engine = {"backend": "hf"}
    parts: dict[str, Any] = {
        "cluster": {"placement": "inline"},
        "rollout": {"engine": engine},
        "teacher": {"model": "t", "engine": engine, "num_engines": 2},
        "probe": {"engine": engine, "num_workers": 1},
    }
    with pytest.raises(
        UserError, match=r"teacher.num_engines=2 with cluster.placement=inline"
    ):
        config("topd", **parts)


@pytest.mark.parametrize(
    ("method", "sections", "message"),
    [
        ("opd", {}, "takeover.stride=16 with objective.trajectory=rollout"),
        ("takeover", {"takeover": {"verdict": "d_ot"}}, "takeover.verdict=d_ot"),
        ("takeover", {"takeover": {"keep": "pass"}}, "takeover.keep=pass"),
        ("takeover", {"teacher": {"num_engines": 2}}, "teacher.num_engines=2"),
    ],
)
def test_a_stride_needs_a_fork_that_is_known_while_the_student_decodes(
    method: str, sections: dict[str, Any], message: str
) -> None:
    takeover = {"stride": 16} | sections.get("takeover", {})
    with pytest.raises(UserError, match=f"{message}.*drop (it|stride)"):
        config(method, **sections | {"takeover": takeover})
    for verdict in ("confident", "surprise"):
        takeover = {"stride": 16, "verdict": verdict}
        assert config("takeover", takeover=takeover).takeover.stride == 16
