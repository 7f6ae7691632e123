"""The schema and its loader: each mistake is one line with field, value and the way
out.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.config import Config, dump_config, load_config, parse_config
from topd_ray.errors import UserError

MINIMAL = (
    "prompts: {path: data.jsonl}\nteacher: {model: big}\nlearner: {model: small}\n"
)
SHIPPED = sorted(
    file
    for file in (Path(__file__).parents[3] / "configs").rglob("*.yaml")
    if file.parent.name != "studies"  # those are study files
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def minimal(**sections: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a whole config; given sections are added to the required ones."""
    required = {
        "prompts": {"path": "data.jsonl"},
        "teacher": {"model": "big"},
        "learner": {"model": "small"},
    }
    return required | {
        name: required.get(name, {}) | values for name, values in sections.items()
    }


def parse(**sections: dict[str, Any]) -> Config:
    return parse_config(minimal(**sections), source="test")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    load_config(path)


def test_the_papers_numbers_are_the_defaults(file: Path) -> None:
    config = load_config(file)
    assert (config.rollout.samples_per_prompt, config.rollout.max_response_tokens) == (
        4,
        8000,
    )
    assert (config.rollout.temperature, config.rollout.top_p) == (1.0, 1.0)
    assert (config.prompts.max_tokens, config.probe.window) == (800, 50)
    assert config.candidates.fraction == pytest.approx(218 / 9688, abs=1e-4)
    assert (config.learner.lr, config.learner.warmup_fraction, config.learner.clip) == (
        2e-6,
        0.05,
        1.0,
    )
    assert (config.probe.epsilon, config.windows.divergence.quantile) == (0.05, 0.30)


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "1E-04"])
def test_numbers_in_exponent_form_arrive_as_floats(number: str, file: Path) -> None:
    assert load_config(file, [f"learner.lr={number}"]).learner.lr == 1e-4
    file.write_text(MINIMAL.replace("small", f"small, lr: {number}"))
    assert load_config(file).learner.lr == 1e-4


def test_overrides_win_in_order_and_leave_the_rest_alone(file: Path) -> None:
    config = load_config(
        file,
        [
            "run.seed=1",
            "run.seed=2",
            "rollout.engine.backend=hf",
            "learner.betas=[0.9,0.95]",
            "prompts.path=a=b.jsonl",
            "run.steps=null",
        ],
    )
    assert (config.run.seed, config.rollout.engine.backend) == (2, "hf")
    assert config.learner.betas == (0.9, 0.95)
    assert (config.prompts.path, config.run.steps) == ("a=b.jsonl", None)
    assert config.learner.model == "small"


OVERRIDE_MISTAKES = [
    ("run.seed", "override 'run.seed': expected section.key=value"),
    ("=5", "override '=5': expected section.key=value"),
    ("run.sed=1", "run.sed: unknown key (value 1); check the spelling or remove it"),
    ("rnu.seed=1", "rnu: unknown key"),
    ("a..b=1", "a: unknown key"),
    ("prompts=5", "prompts: Input should be a valid dictionary"),
    ("run.name.first=x", "run.name: Input should be a valid string"),
    ("prompts.path=", "prompts.path: Input should be a valid string, found None"),
    ("prompts.path=[a", "overrides prompts.path=[a: "),
    ("prompts.path=${nothing}", "Interpolation key 'nothing' not found"),
    ("learner.betas=[0.9]", "learner.betas.1: is missing"),
    ("run.seed=-1", "run.seed: Input should be greater than or equal to 0, found -1"),
    ("run.seed=1.5", "run.seed: Input should be a valid integer"),
    ("run.name=a/b", "run.name: String should match pattern"),
    ("learner.lr=0", "learner.lr: Input should be greater than 0, found 0"),
    ("learner.lr=.nan", "learner.lr: Input should be a finite number, found nan"),
    (
        "learner.zero_stage=4",
        "learner.zero_stage: Input should be less than or equal to 3",
    ),
    (
        "learner.lora.rank=0",
        "learner.lora.rank: Input should be greater than 0, found 0",
    ),
    ("learner.lora.alpha=-1", "learner.lora.alpha: Input should be greater than 0"),
    (
        "learner.lora.targets=[]",
        "learner.lora.targets: Tuple should have at least 1 item after validation",
    ),
    (
        "learner.sequence_parallel=2",
        "learner.num_ranks=1 is no multiple of learner.sequence_parallel=2",
    ),
    ("rollout.top_p=1.5", "rollout.top_p: Input should be less than or equal to 1"),
    ("candidates.fraction=0", "candidates.fraction: Input should be greater than 0"),
    (
        "candidates.loss=kl",
        "candidates.loss: Input should be 'reverse_kl', 'log_ratio' or",
    ),
    (
        "teacher.engine={batch_invariant: true}",
        "teacher.engine: batch_invariant=True with gpus=0: vLLM has it on a GPU alone",
    ),
    (
        "teacher.engine={expert_parallel: true, gpus: 1}",
        "teacher.engine: expert_parallel=True with tensor_parallel=1: one GPU holds",
    ),
    (
        "rollout.engine={backend: hf, gpus: 1, max_num_batched_tokens: 4096}",
        "rollout.engine: max_num_batched_tokens=4096 with backend=hf: it is an option",
    ),
    (
        "rollout.engine={gpus: 1, max_num_batched_tokens: 32}",
        "rollout.engine: max_num_batched_tokens=32 is less than max_num_seqs=64",
    ),
    ("rollout.engine.backend=sglang", "rollout.engine.backend: Input should be 'vllm'"),
    (
        "windows.divergence.quantile=1",
        "windows.divergence.quantile: Input should be less than 1",
    ),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDE_MISTAKES)
def test_a_mistaken_override_names_its_field_and_value(
    override: str, message: str, file: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(file, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


FILE_MISTAKES: list[tuple[bytes, str]] = [
    (b"", "prompts: is missing; set it; learner: is missing"),
    (b"- a\n", "expected sections such as `run:` and `learner:`, found ['a']"),
    (b"5\n", "not readable as YAML"),
    (b"a:\n\tb: 1\n", "not readable as YAML"),
    (MINIMAL.encode() + b"prompts: {path: b}\n", "found duplicate key prompts"),
    (
        MINIMAL.encode() + b"run: {name: '${nothing}'}\n",
        "Interpolation key 'nothing' not found",
    ),
    (
        MINIMAL.encode() + b"run:\n  name: ???\n",
        "Missing mandatory value: name full_key: run.name",
    ),
    (MINIMAL.encode() + b"run:\n", "run: Input should be a valid dictionary"),
    (MINIMAL.encode() + b"1: 2\n", "1: Keys should be strings"),
    (b"a: &a [*a]\n", "recursive aliases are not supported"),
    (b"a: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
    (b"\x00", "not readable as YAML"),
    (b"a: \xe9", "not readable as YAML"),
    ("a: 1".encode("utf-16"), "not readable as YAML"),
]


@pytest.mark.parametrize(("content", "message"), FILE_MISTAKES)
def test_a_file_that_is_no_config_is_named(
    content: bytes, message: str, file: Path
) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.yaml", "."])
def test_a_missing_file_says_where_to_start(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no such config file; configs/ holds ones to start from"
    ):
        load_config(tmp_path / name)


def test_every_mistake_of_a_file_is_told_at_once(file: Path) -> None:
    with pytest.raises(
        UserError, match=r"run\.seed: .*; learner\.lr: .*; learner\.lrr: "
    ):
        load_config(file, ["run.seed=-1", "learner.lr=0", "learner.lrr=1"])


TEXTS = [
    "1e5",
    "1_000",
    "0x10",
    "on",
    "null",
    "true",
    "12:30",
    "a\nb",
    " a",
    "#a",
    "é",
    "a: b",
    "~",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_dumped_config_reads_back_equal_whatever_its_texts(
    text: str, tmp_path: Path
) -> None:
    config = parse(prompts={"path": text})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


@settings(max_examples=25, deadline=None)
@given(
    lr=st.floats(1e-12, 1e3),
    seed=st.integers(0, 2**63),
    name=st.from_regex(r"[0-9e._-]{1,6}"),
)
def test_a_dumped_config_reads_back_equal_whatever_its_numbers(
    lr: float, seed: int, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = parse(learner={"lr": lr, "model": name}, run={"seed": seed})
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_mappings_and_dates_of_the_command_line_are_read_and_written_back(
    file: Path, tmp_path: Path
) -> None:
    config = load_config(
        file,
        [
            "prompts.today=2024-07-26",
            "prompts.columns.answer=null",
            "prompts.columns.prompt=task.text",
            "prompts.chat_template_kwargs.enable_thinking=true",
        ],
    )
    assert str(config.prompts.today) == "2024-07-26"
    assert config.prompts.columns == {"answer": None, "prompt": "task.text"}
    assert config.prompts.chat_template_kwargs == {"enable_thinking": True}
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config
    with pytest.raises(UserError, match=r"prompts\.columns\.question"):
        load_config(file, ["prompts.columns.question=q"])


def test_the_longest_sequences_follow_from_the_stages() -> None:
    config = parse(
        prompts={"max_tokens": 100},
        rollout={"max_response_tokens": 200},
        probe={"window": 20},
    )
    assert (config.uses_probes, config.sequence_tokens) == (True, 300)
    assert config.student_context_tokens == config.teacher_context_tokens == 321
    baseline = parse(
        run={"method": "opd"},
        prompts={"max_tokens": 100},
        rollout={"max_response_tokens": 200},
    )
    assert (baseline.uses_probes, baseline.student_context_tokens) == (False, 301)


@pytest.mark.parametrize("section", ["rollout", "teacher", "probe"])
def test_an_engine_must_hold_the_longest_sequence(section: str) -> None:
    def with_length(length: int) -> Config:
        return parse(**{section: {"engine": {"max_model_len": length}}})

    with_length(8851)
    with pytest.raises(
        UserError,
        match=(
            rf"{section}\.engine\.max_model_len=8850 is too short: .* raise it to 8851"
        ),
    ):
        with_length(8850)


def test_a_baseline_run_needs_no_room_for_probes() -> None:
    opd = {"method": "opd"}
    parse(run=opd, rollout={"engine": {"max_model_len": 8801}})
    parse(run=opd, probe={"engine": {"max_model_len": 1}, "window": 4})
    with pytest.raises(UserError, match=r"8000 \+ 1 = 8801"):
        parse(run=opd, rollout={"engine": {"max_model_len": 8800}})


def test_probe_workers_share_the_teachers_engine_unless_they_are_given_one() -> None:
    shared = parse()
    assert (shared.probe_engine, shared.num_probe_workers) == (None, 1)
    assert shared.transport_device == "cpu"
    assert parse(probe={"engine": {"cpus": 2}}).transport_device == "cpu"
    own = parse(probe={"engine": {"gpus": 1}, "num_workers": 3})
    assert own.probe_engine is not None
    assert (own.probe_engine.gpus, own.num_probe_workers) == (1, 3)
    assert own.transport_device == "cuda"
    with pytest.raises(UserError, match=r"probe\.engine"):
        parse(probe={"engine": "mine"})


def test_a_window_must_be_able_to_exist() -> None:
    parse(candidates={"min_window": 50})
    with pytest.raises(
        UserError, match=r"candidates\.min_window=51 exceeds probe\.window=50"
    ):
        parse(candidates={"min_window": 51})


@pytest.mark.parametrize("section", ["rollout", "teacher", "probe"])
def test_tensor_parallel_needs_as_many_gpus(section: str) -> None:
    parse(**{section: {"engine": {"tensor_parallel": 2, "gpus": 2}}})
    shared = {"tensor_parallel": 1, "gpus": 0.25, "kv_cache_gib": 4}
    parse(**{section: {"engine": shared}})
    with pytest.raises(
        UserError, match=rf"{section}\.engine\.gpus=1 .*; set gpus to 2"
    ):
        parse(**{section: {"engine": {"tensor_parallel": 2, "gpus": 1}}})


def test_a_second_gpu_of_an_engine_that_is_not_split_would_idle() -> None:
    with pytest.raises(UserError, match=r"gpus=2 does not fit .*; set gpus to 1"):
        parse(teacher={"engine": {"gpus": 2}})


@pytest.mark.parametrize("layout", ["disaggregated", "colocated"])
def test_a_layout_sets_the_gpus_of_every_actor(layout: str) -> None:
    engine = {"kv_cache_gib": 4}
    config = parse(
        cluster={"layout": layout},
        rollout={"engine": engine},
        teacher={"engine": {"tensor_parallel": 4, **engine}},
    )
    assert config.rollout.engine.gpus == 1
    assert config.teacher.engine.gpus == 4
    assert config.learner.gpus == 1
    assert config.probe.engine == "shared"
    own = {"engine": {"tensor_parallel": 2, **engine}}
    assert config.rollout.engine.tensor_parallel == 1
    dedicated = parse(
        cluster={"layout": layout},
        rollout={"engine": engine},
        teacher={"engine": engine},
        probe=own,
    ).probe_engine
    assert dedicated is not None
    assert dedicated.gpus == 2
    # A run folder holds the filled values, and must load again.
    assert parse_config(config.model_dump(mode="json"), source="again") == config


def test_a_layout_takes_no_gpus_by_hand() -> None:
    split = {"cluster": {"layout": "disaggregated"}}
    with pytest.raises(UserError, match=r"rollout\.engine\.gpus=0.5 with cluster"):
        parse(**split, rollout={"engine": {"gpus": 0.5, "kv_cache_gib": 1}})
    with pytest.raises(UserError, match=r"learner\.gpus=0.5 with cluster"):
        parse(**split, learner={"gpus": 0.5})
    with pytest.raises(UserError, match=r"layout=disaggregated with .*inline"):
        parse(
            cluster={"layout": "disaggregated", "placement": "inline"},
            rollout={"engine": {"backend": "hf"}},
            teacher={"engine": {"backend": "hf"}},
        )


def test_an_engine_that_shares_its_gpu_needs_a_cache_of_a_size() -> None:
    message = r"{}\.engine\.kv_cache_gib is missing, and the engine shares its GPU"
    with pytest.raises(UserError, match=message.format("teacher")):
        parse(teacher={"engine": {"gpus": 0.5}})
    with pytest.raises(UserError, match=message.format("rollout")):
        parse(cluster={"layout": "colocated"})
    parse(teacher={"engine": {"gpus": 0.5, "backend": "hf"}})
    parse(teacher={"engine": {"gpus": 1}})
    # Given responses need no rollout engine.
    kd = {"method": "kd"}
    teacher = {"engine": {"kv_cache_gib": 1}}
    parse(run=kd, cluster={"layout": "colocated"}, teacher=teacher)


def test_a_threshold_goes_with_the_absolute_rule_alone() -> None:
    assert parse(windows={"divergence": {"rule": "absolute", "threshold": 0.3}})
    with pytest.raises(
        UserError, match="threshold is missing: rule=absolute needs one"
    ):
        parse(windows={"divergence": {"rule": "absolute"}})
    with pytest.raises(
        UserError, match=r"threshold=0\.3 has no effect with rule=quantile"
    ):
        parse(windows={"divergence": {"threshold": 0.3}})


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse().run.seed = 1  # type: ignore[misc]


def test_every_field_is_documented() -> None:
    undocumented = [
        f"{name}.{field}"
        for name, section in Config.model_fields.items()
        for field, info in section.annotation.model_fields.items()  # type: ignore[union-attr]
        if not info.description and "model_fields" not in dir(info.annotation)
    ]
    assert undocumented == []


def test_the_schema_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, topd_ray.config; print(sorted({'torch', 'ray'} &"
        " set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_actors_may_have_environment_variables() -> None:
    env = {"NCCL_SOCKET_IFNAME": "eth0", "HF_HOME": "/shared/huggingface"}
    assert parse(cluster={"env": env}).cluster.env == env


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"A B": "1"}, "'A B' is no name of an environment variable"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "the placement of the actors sets it"),
        ({"HF_TOKEN": "x"}, "HF_TOKEN: the run folder would hold it in plain text"),
    ],
)
def test_a_variable_that_cannot_be_given_to_actors_is_refused(
    env: dict[str, str], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        parse(cluster={"env": env})


def test_variables_without_a_process_are_refused() -> None:
    with pytest.raises(UserError, match=r"cluster\.env=.*placement=inline"):
        parse(cluster={"env": {"A": "1"}, "placement": "inline"})


def test_a_project_without_its_tracker_is_refused() -> None:
    with pytest.raises(UserError, match=r"wandb_project=topd with trackers="):
        parse(records={"wandb_project": "topd"})


@pytest.mark.parametrize("trackers", [["mlflow", "mlflow"], ["comet"]])
def test_a_tracker_is_known_and_named_once(trackers: list[str]) -> None:
    with pytest.raises(UserError, match=r"records.*trackers"):
        parse(records={"trackers": trackers})
