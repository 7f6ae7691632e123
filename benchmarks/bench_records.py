"""Claim `records_cost`: what recording takes of a step, and the bytes that it writes.

.venv/bin/python benchmarks/bench_records.py
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from bench_driver import NUM_CANDIDATES, paper_step
from measure import MIN_PAIRS, Claim, Ratio, save

from topd_ray import load_config, train
from topd_ray.config import RecordsConfig
from topd_ray.messages import HIGH, ProbeSet, Rollout, SampledSignal, ScoredRollout
from topd_ray.records import run_log
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.step_recorder import StepRecorder

TOY = Path(__file__).parents[1] / "configs" / "local-toy.yaml"
GOAL = 0.02
K = 50
RESPONSE_TOKENS = 8000
ROLLOUTS = 4
"""Of a step of the paper."""
FOLDERS = ("windows", "rollouts", "timeline")


def main() -> None:
    """Measure both steps and leave the claim."""
    toy, toy_bytes = toy_run()
    record_s, paper_bytes = paper_sized()
    paper_s, _ = paper_step()
    share = record_s.median / paper_s
    save(
        Claim(
            name="records_cost",
            claim="recording at the defaults, share of a step's CPU time",
            against="the same step",
            goal=f"<= {GOAL:.0%}",
            figure=f"{toy.median:.2%} [{min(toy.values):.2%}, {max(toy.values):.2%}]",
            met=toy.median <= GOAL and share <= GOAL,
            setting=(
                f"{len(toy.values)} TOPD steps of configs/local-toy.yaml in one"
                " process, on transformers: CPU time of the calls that collect and"
                " write windows, rollouts and the timeline, over that of the whole"
                " step, in one run. The paper's step: messages of its size, made at"
                f" random ({ROLLOUTS} rollouts of {RESPONSE_TOKENS:,} tokens with"
                f" {NUM_CANDIDATES} windows of {K} tokens each), against"
                f" {paper_s:.1f} s (OPD by the roofline on 4 x H100, the shortest"
                " step); left out is the product with the teacher's head at 64"
                " positions, which the loss has at every one of the 32,000"
            ),
            details=[
                row("toy", toy_bytes, f"{toy.median:.2%}"),
                row("paper's", paper_bytes, f"{share:.2%}"),
            ],
            words=(
                "Trackers get a table and figures after the first step and with each"
                " checkpoint only: half a second each time, most of it matplotlib's."
            ),
        )
    )


def row(name: str, sizes: dict[str, float], share: str) -> dict[str, Any]:
    """A step's kilobytes, by folder."""
    kilobytes = {f"{folder}/, kB": round(sizes[folder] / 1e3, 1) for folder in FOLDERS}
    return {"step": name} | kilobytes | {"share of the step": share}


def toy_run() -> tuple[Ratio, dict[str, float]]:
    """CPU seconds of recording over those of the step; bytes a step."""
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as root, timed_recording(spent):
        overrides = [
            f"run.root={root}",
            f"run.steps={MIN_PAIRS + 1}",
            "cluster.placement=inline",
            "rollout.engine.backend=hf",
            "teacher.engine.backend=hf",
            "evaluation.num_problems=1",
            "records.trackers=[]",
        ]
        config = load_config(TOY, overrides)
        train(config, output="quiet")
        folder = RunFolder.of(config)
        lines = folder.metrics.read_text(encoding="utf-8").splitlines()
        steps_s = [json.loads(line)["step/cpu_s"] for line in lines]
        sizes = bytes_of(folder, len(steps_s))
    # The first step pays for imports and compilation.
    pairs = list(zip(spent, steps_s, strict=True))[1:]
    return Ratio(tuple(record_s / step_s for record_s, step_s in pairs)), sizes


@contextmanager
def timed_recording(spent: list[float]) -> Iterator[None]:
    """Append the CPU seconds of each step's recording to `spent`."""
    pending_s = 0.0

    def timed(call: Callable[..., Any], *, ends_step: bool = False) -> Any:
        @wraps(call)
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal pending_s
            began_s = time.process_time()
            value = call(*arguments, **named)
            pending_s += time.process_time() - began_s
            if ends_step:
                spent.append(pending_s)
                pending_s = 0.0
            return value

        return run

    write = timed(run_log.write_step_file, ends_step=True)
    with (
        mock.patch.object(StepRecorder, "add", timed(StepRecorder.add)),
        mock.patch.object(StepRecorder, "write", timed(StepRecorder.write)),
        mock.patch.object(run_log, "timeline_table", timed(run_log.timeline_table)),
        mock.patch.object(run_log, "write_step_file", write),
    ):
        yield


def paper_sized() -> tuple[Ratio, dict[str, float]]:
    """CPU seconds of recording a step of the paper's size; bytes a step."""
    rng = np.random.default_rng(0)
    steps = [[a_rollout(rng, f"r{i}") for i in range(ROLLOUTS)] for _ in range(3)]
    seconds = []
    with tempfile.TemporaryDirectory() as root:
        folder = RunFolder(Path(root))
        recorder = StepRecorder(RecordsConfig(), folder)
        for number, rollouts in enumerate(steps * 2, 1):
            began_s = time.process_time()
            scored, probe_sets = zip(*rollouts, strict=True)
            recorder.add(scored, probe_sets, {}, 0.1)
            recorder.write(number, lambda _, __: None)
            seconds.append(time.process_time() - began_s)
        sizes = bytes_of(folder, len(seconds))
    return Ratio(tuple(seconds[1:])), sizes


def a_rollout(rng: np.random.Generator, name: str) -> tuple[ScoredRollout, ProbeSet]:
    """Random ids of a vocabulary of 150,000, and plans at the paper's blur."""
    length, count = RESPONSE_TOKENS, NUM_CANDIDATES
    ids_N = rng.integers(0, 150_000, length, dtype=np.int32)
    logp_N = -rng.exponential(0.4, length).astype(np.float32)
    top_OM = rng.integers(0, 150_000, (length, 32), dtype=np.int32)
    rollout = Rollout(
        rollout_id=name,
        prompt_id=name,
        position=0,
        policy_version=0,
        prompt_ids_P=ids_N[:200],
        teacher_prompt_ids_P=ids_N[:200],
        response_ids_N=ids_N,
        logp_O=logp_N,
        top_ids_OM=top_OM,
        top_logp_OM=np.sort(-rng.random((length, 32), np.float32))[:, ::-1],
        finish_reason="length",
    )
    scored = ScoredRollout(
        rollout=rollout,
        signal=SampledSignal(logq_N=logp_N),
        token_loss_N=-logp_N,
        logq_N=logp_N,
        entropy_N=logp_N[:0],
    )
    states = rng.standard_normal((2, count, K, 8))
    states /= np.linalg.norm(states, axis=-1, keepdims=True)
    cost_WKK = 1 - np.einsum("wik,wjk->wij", *states)
    plan_WKK = np.exp(-cost_WKK / (0.05 * np.median(cost_WKK)))
    plan_WKK /= plan_WKK.sum(2, keepdims=True) * K
    windows = rng.integers(0, 150_000, (2, count, K), dtype=np.int32)
    return scored, ProbeSet(
        rollout_id=name,
        policy_version=0,
        positions_W=np.sort(rng.choice(length, count, replace=False)).astype(np.int32),
        losses_W=rng.random(count, np.float32),
        groups_W=np.full(count, HIGH, np.int32),
        resampled=False,
        student_ids_WK=windows[0],
        num_student_W=np.full(count, K, np.int32),
        teacher_ids_WK=windows[1],
        num_teacher_W=np.full(count, K, np.int32),
        plan_WKK=plan_WKK.astype(np.float32),
        d_ot_W=rng.random(count, np.float32),
        converged_W=np.ones(count, np.bool_),
    )


def bytes_of(folder: RunFolder, num_steps: int) -> dict[str, float]:
    """Bytes a step in each folder."""
    return {
        name: sum(file.stat().st_size for file in (folder.path / name).glob("*"))
        / num_steps
        for name in FOLDERS
    }


if __name__ == "__main__":
    main()
