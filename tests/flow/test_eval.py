"""`topd eval` as a user starts it, on vLLM."""

import json
from pathlib import Path

import pytest

from tests.contract.backends import THIRD_PARTY
from tests.runs import ROOT, read_jsonl, topd, topd_process

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500), THIRD_PARTY]
STUDENT = ROOT / "topd_ray" / "toy" / "world" / "student"
SAMPLED = ("--samples", "4", "--temperature", "1.5", "--max-tokens", "60")


def test_vllm_draws_samples_that_differ_and_the_seed_repeats_them(
    tmp_path: Path,
) -> None:
    data = tmp_path / "own.jsonl"
    rows = [
        {"ID": f"own-{i}", "Problem": f"what is {i} + 4 modulo 10 ?", "Answer": i + 4}
        for i in range(3)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--task", "aime24", "--data", data, *SAMPLED, "--backend", "vllm")
    drawn = []
    # In two processes: nothing may depend on what a process draws when it starts.
    for name, command in (("first", topd_process), ("again", topd)):
        out = tmp_path / f"{name}.json"
        done = command("eval", STUDENT, *arguments, "--out", out)
        assert done.code == 0, done.output
        assert "Avg@4" in done.output
        drawn.append(read_jsonl(tmp_path / f"{name}.samples.jsonl"))
    assert drawn[0] == drawn[1]
    for problem in range(3):
        responses = {row["response"] for row in drawn[0] if row["doc_id"] == problem}
        assert len(responses) > 1, f"problem {problem}: {responses}"


def test_both_back_ends_agree_on_greedy_answers(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = topd("eval", STUDENT, "--task", "toy", "--num", "16", "--out", out)
    assert done.code == 0, done.output
    on_vllm = json.loads(out.read_text())
    done = topd(
        "eval", STUDENT, "--task", "toy", "--num", "16", "--out", out, "--backend", "hf"
    )
    assert done.code == 0, done.output
    on_hf = json.loads(out.read_text())
    assert (on_vllm["backend"], on_hf["backend"]) == ("vllm", "hf")
    # Greedy, but of two implementations: a near tie may fall either way.
    shares = [figures["tasks"]["toy"]["avg"]["value"] for figures in (on_vllm, on_hf)]
    assert abs(shares[0] - shares[1]) <= 2 / 16


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--task", "aime23"), "--task aime23: expected one of aime24"),
        (("--task", "humaneval_plus"), "add --confirm-run-unsafe-code"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], expected: str
) -> None:
    done = topd("eval", STUDENT, *arguments)
    assert done.code == 2, done.output
    assert expected in " ".join(done.output.split())
    assert "Traceback" not in done.output
