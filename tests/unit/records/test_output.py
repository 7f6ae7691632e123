"""What stdout gets while a run goes on: a display, JSON lines, or nothing."""

import io
import json
import math
from contextlib import redirect_stdout

import pytest
from rich.console import Console

from topd_ray.evaluation import Accuracy
from topd_ray.records.display import Display
from topd_ray.records.machine_output import MachineOutput
from topd_ray.records.metrics import Metrics


def metrics(step: int, **changes: float) -> Metrics:
    names = ("loss", "loss/opd", "candidates/num", "takeover/num", "rollout/staleness")
    values: Metrics = dict.fromkeys([*names, "learner/grad_norm"], 0.0)
    for stage in ("rollout", "teacher", "probe", "takeover", "learner"):
        values |= {f"{stage}/busy_s": 1.0, f"{stage}/num_tokens": 100}
    return values | {"step": step, "step/wall_s": 4.0} | changes


def displayed(*, terminal: bool, width: int = 120) -> str:
    """Two of 90 steps after two evaluations, and a line of model output."""
    console = Console(force_terminal=terminal, width=width, file=io.StringIO())
    with Display("topd r", total_steps=90, started_s=0.0, console=console) as display:
        display.remember(Accuracy(num_problems=4, num_correct=1))
        display.remember(Accuracy(num_problems=4, num_correct=4))
        display.step(metrics(1), memory_gb=1.25)
        display.evaluated(Accuracy(num_problems=4, num_correct=2), "at step 1")
        display.evaluated(Accuracy(num_problems=4, num_correct=3), "at step 2")
        display.step(metrics(2), memory_gb=1.25)
        display.say("half \ufffd [bold] \x1b[31m \u202e <script>")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_off_a_terminal_a_line_says_how_far_how_fast_how_good_and_how_large() -> None:
    lines = displayed(terminal=False).splitlines()
    first, second = (line for line in lines if " step " in line and "loss" in line)
    assert "step 1/90  loss" in first
    assert first.endswith("accuracy 25.0%  25 tokens/s  memory 1.2 GB  ETA 6 min")
    assert "accuracy 25.0% -> 75.0%" in second
    assert "\x1b" not in "".join(lines)


def test_a_narrow_terminal_has_the_same_and_no_command_of_a_model() -> None:
    shown = displayed(terminal=True, width=40)
    assert "2/90" in shown
    assert "ETA" in shown
    assert r"\x1b" in shown
    assert r"\u202e" in shown
    assert "\x1b[31m" not in shown
    assert "\u202e" not in shown


def test_json_lines_are_the_metrics_and_then_the_summary_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with MachineOutput(quiet=False) as output:
        print("a note of a library")
        output.say("a person's line")
        output.evaluated(Accuracy(num_problems=4, num_correct=1), "before training")
        output.step(metrics(1, loss=math.nan), memory_gb=1.0)
        output.summary({"name": "r", "steps": 1})
    printed = capsys.readouterr()
    first, second = map(json.loads, printed.out.splitlines())
    assert (first["step"], first["loss"]) == (1, None)
    assert second == {"name": "r", "steps": 1}
    assert printed.err == "a note of a library\n"


def test_quiet_prints_nothing() -> None:
    stdout = io.StringIO()
    with redirect_stdout(stdout), MachineOutput(quiet=True) as output:
        output.say("a person's line")
        output.step(metrics(1), memory_gb=1.0)
        output.summary({"name": "r"})
    assert not stdout.getvalue()
