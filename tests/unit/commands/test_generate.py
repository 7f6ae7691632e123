"""`topd generate`: a row a prompt, whatever interrupts it, and the rows are data of a
kd run.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.tiny import EOS_ID
from topd_ray.cli import app
from topd_ray.commands.generate import AnswerSampling, generate
from topd_ray.config import Config, dump_config, parse_config
from topd_ray.engines.open import open_generation
from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.errors import UserError
from topd_ray.inputs.prompts import load_source
from topd_ray.prompts import read_records

NUM_PROMPTS = 20  # of a fake engine that takes one at a time: three chunks
SAMPLING = AnswerSampling(temperature=0.6, top_p=0.95, max_tokens=16384)

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [
        {
            "prompt_id": f"p{index}",
            "messages": [
                {"role": "system", "content": "w3"},
                {"role": "user", "content": f"w{index % 40} {index % 10}"},
                {"role": "assistant", "content": "w1"},
            ],
            "answer": str(index % 10),
            "reference": f"w{index}",
        }
        for index in range(NUM_PROMPTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def make_config(data: Path, student_folder: Path, teacher_folder: Path) -> MakeConfig:
    def made(**sections: dict[str, Any]) -> Config:
        values: dict[str, Any] = {
            "run": {"method": "kd"},
            "prompts": {"path": str(data), "max_tokens": 16},
            "rollout": {"max_response_tokens": 30},
            "teacher": {
                "model": str(teacher_folder),
                "engine": {"backend": "fake", "max_num_seqs": 1},
            },
            "learner": {"model": str(student_folder)},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
        return parse_config(values, source="test")

    return made


@pytest.fixture(scope="module")
def whole(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run that nothing interrupts writes."""
    out = tmp_path_factory.mktemp("out") / "whole.jsonl"
    generate(make_config(), out, SAMPLING)
    return out


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def by_id(out: Path) -> dict[str, dict[str, Any]]:
    rows = rows_of(out)
    assert len({row["prompt_id"] for row in rows}) == len(rows), "a row twice"
    return {row["prompt_id"]: row for row in rows}


def test_every_prompt_gets_a_row_with_what_it_was_made_from(
    whole: Path, data: Path
) -> None:
    asked, rows = by_id(data), by_id(whole)
    assert set(rows) == set(asked)
    for prompt_id, row in rows.items():
        assert row["messages"] == asked[prompt_id]["messages"][:2], (
            "the response is not asked for"
        )
        assert row["answer"] == asked[prompt_id]["answer"]
        assert row["reference"] == asked[prompt_id]["reference"]
        assert (row["finish_reason"] == "stop") == (row["response_ids"][-1] == EOS_ID)
        assert 1 <= len(row["response_ids"]) <= 30
        assert "<|im_end|>" not in row["response"]


def test_the_rows_are_prompts_of_a_kd_run_token_by_token(
    whole: Path, make_config: MakeConfig, student_folder: Path, teacher_folder: Path
) -> None:
    prompts = {"path": str(whole), "max_tokens": 16, "truncated": "keep"}
    config = make_config(prompts=prompts)
    source, dropped = load_source(
        config, student=student_folder, teacher=teacher_folder
    )
    assert dropped == []
    rows = by_id(whole)
    for prompt in source.take(len(source)):
        assert prompt.response_ids_N is not None
        row = rows[prompt.prompt_id]
        assert prompt.response_ids_N.tolist() == row["response_ids"]
        assert prompt.response_finish_reason == row["finish_reason"]
    assert [record.reference for record in read_records(whole)] == [
        row["reference"] for row in rows_of(whole)
    ]


def test_answers_that_the_token_limit_cut_are_left_out_of_a_kd_run(
    whole: Path, make_config: MakeConfig, student_folder: Path, teacher_folder: Path
) -> None:
    source, dropped = load_source(
        make_config(prompts={"path": str(whole), "max_tokens": 16}),
        student=student_folder,
        teacher=teacher_folder,
    )
    reasons = {row["prompt_id"]: row["finish_reason"] for row in rows_of(whole)}
    cut = [name for name, reason in reasons.items() if reason == "length"]
    assert 0 < len(cut) < len(reasons)
    assert [drop.prompt_id for drop in dropped] == cut
    assert len(source) == len(reasons) - len(cut)


@settings(max_examples=12, deadline=None)
@given(share=st.floats(0, 1))
def test_after_an_interruption_anywhere_no_row_is_lost_repeated_or_different(
    share: float,
    whole: Path,
    make_config: MakeConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    written = whole.read_bytes()
    out = tmp_path_factory.mktemp("cut") / "out.jsonl"
    out.write_bytes(written[: round(share * len(written))])
    whole_rows = out.read_bytes().count(b"\n")
    counts = generate(make_config(), out, SAMPLING)
    assert by_id(out) == by_id(whole)
    assert (counts["rows before"], counts["rows"]) == (
        whole_rows,
        NUM_PROMPTS - whole_rows,
    )


def never_opened(*args: Any, **limits: Any) -> Any:
    raise AssertionError(args, limits)


class Dying:
    """An engine that answers as another does, until it has answered often enough."""

    def __init__(self, engine: GenerationEngine, num_answers: int) -> None:
        self._engine, self._left = engine, num_answers
        self.asked: list[Sequence[GenerationRequest]] = []
        self.closed = False

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        self.asked.append(requests)
        for answer in self._engine.generate(requests):
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            yield answer

    def close(self) -> None:
        self.closed = True


def test_a_run_that_dies_leaves_every_finished_row(
    whole: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    engines = []

    def open_dying(*args: Any, **limits: Any) -> Any:
        engines.append(Dying(open_generation(*args, **limits), 11))
        return engines[-1]

    out = tmp_path / "new" / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        generate(make_config(), out, SAMPLING, open_engine=open_dying)
    assert engines[0].closed
    assert [len(requests) for requests in engines[0].asked] == [8, 8], "in chunks"
    assert (
        len({request.seed for requests in engines[0].asked for request in requests})
        == 16
    )
    assert len(by_id(out)) == 11
    generate(make_config(), out, SAMPLING)
    assert by_id(out) == by_id(whole)


def test_a_file_that_is_complete_is_left_alone_and_loads_no_model(
    whole: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = whole.read_bytes()
    counts = generate(make_config(), whole, SAMPLING, open_engine=never_opened)
    assert whole.read_bytes() == before
    assert (counts["rows"], counts["rows before"]) == (0, NUM_PROMPTS)
    assert f"{whole}: 0 rows written" in capsys.readouterr().out


def test_the_first_so_many_are_asked_and_more_later(
    whole: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert generate(make_config(), out, SAMPLING, num=5)["rows"] == 5
    assert set(by_id(out)) == {f"p{index}" for index in range(5)}
    assert generate(make_config(), out, SAMPLING, num=7)["rows"] == 2
    assert by_id(out) == {f"p{index}": by_id(whole)[f"p{index}"] for index in range(7)}


def test_the_limit_is_the_smaller_of_the_two_and_what_it_cuts_is_counted(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(rollout={"max_response_tokens": 6})
    for name, own, limit in (("a.jsonl", 100, 6), ("b.jsonl", 3, 3)):
        counts = generate(
            config,
            tmp_path / name,
            AnswerSampling(temperature=0.6, top_p=0.95, max_tokens=own),
        )
        rows = rows_of(tmp_path / name)
        assert max(len(row["response_ids"]) for row in rows) == limit
        assert (
            counts["truncated"]
            == sum(row["finish_reason"] == "length" for row in rows)
            > 0
        )
        assert counts["tokens"] == sum(len(row["response_ids"]) for row in rows)
        assert f"{counts['truncated']} responses truncated" in capsys.readouterr().out


def test_temperature_and_seed_decide_what_is_written(
    whole: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    greedy = AnswerSampling(temperature=0.0, top_p=1.0, max_tokens=30)
    written = {}
    for name, config, sampling in (
        ("greedy", make_config(), greedy),
        ("greedy again", make_config(run={"seed": 1}), greedy),
        ("another seed", make_config(run={"seed": 1}), SAMPLING),
    ):
        generate(config, tmp_path / name, sampling)
        written[name] = {
            key: row["response_ids"] for key, row in by_id(tmp_path / name).items()
        }
    sampled = {key: row["response_ids"] for key, row in by_id(whole).items()}
    assert written["greedy"] == written["greedy again"] != sampled
    assert written["another seed"] != sampled


def test_transformers_answer_as_well(make_config: MakeConfig, tmp_path: Path) -> None:
    engine = {"backend": "hf", "dtype": "float32", "max_num_seqs": 2}
    config = make_config(teacher={"engine": engine}, rollout={"max_response_tokens": 4})
    generate(config, tmp_path / "out.jsonl", SAMPLING, num=3)
    assert len(by_id(tmp_path / "out.jsonl")) == 3


def test_the_data_itself_is_not_written_over(
    make_config: MakeConfig, data: Path
) -> None:
    with pytest.raises(UserError, match=r"is prompts\.path itself"):
        generate(make_config(), data, SAMPLING)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt_id": "p0", "prompt": "w1"}', "line 1: no row of `topd generate`"),
        ('{"prompt_id": "p0", "prompt": "w1"}\n', "line 1: no row of `topd generate`"),
        ("notes of mine", "line 1: no row of `topd generate`"),
        ('{"a": 1', "line 1: no row of `topd generate`"),
        ("[]\n", "line 1: no row of `topd generate`"),
        (
            '{"prompt_id": "p0", "model": "other", "response_ids": [1]}\n',
            "line 1: other wrote it",
        ),
        ('{"prompt_id": "p0", "mod\n', "line 1: no row of `topd generate`"),
    ],
)
def test_a_file_of_somebody_elses_is_refused_and_left_as_it_is(
    content: str, message: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    with pytest.raises(UserError, match="name another --out") as caught:
        generate(make_config(), out, SAMPLING)
    assert message in str(caught.value)
    assert out.read_text() == content


def test_an_out_that_cannot_be_a_file_is_named(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"--out {tmp_path}: "):
        generate(make_config(), tmp_path, SAMPLING, open_engine=never_opened)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out\.jsonl: cannot be written"):
        generate(
            make_config(),
            tmp_path / "file" / "out.jsonl",
            SAMPLING,
            open_engine=never_opened,
        )


def test_the_command_says_what_it_wrote(
    make_config: MakeConfig, tmp_path: Path, whole: Path
) -> None:
    config, out = tmp_path / "config.yaml", tmp_path / "out.jsonl"
    config.write_text(dump_config(make_config()))
    done = CliRunner().invoke(
        app, ["generate", str(config), "--out", str(out), "--num", "2", "run.seed=0"]
    )
    assert done.exit_code == 0, done.output
    assert "2 rows written" in done.output
    assert by_id(out) == {name: by_id(whole)[name] for name in ("p0", "p1")}


def test_relative_paths_are_of_the_drivers_folder_and_rows_keep_the_name(
    make_config: MakeConfig, teacher_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The engine gets a whole path, wherever it works; a row gets the config's name."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "teacher").symlink_to(teacher_folder)
    monkeypatch.chdir(tmp_path / "here")
    opened: list[Path] = []

    def open_elsewhere(folder: Path, *args: Any, **kwargs: Any) -> GenerationEngine:
        opened.append(folder)
        monkeypatch.chdir(tmp_path)
        return open_generation(folder, *args, **kwargs)

    config = make_config(teacher={"model": "teacher"})
    out = tmp_path / "rows.jsonl"
    generate(config, out, SAMPLING, num=3, open_engine=open_elsewhere)
    assert opened == [tmp_path / "here" / "teacher"]
    assert {row["model"] for row in rows_of(out)} == {"teacher"}
