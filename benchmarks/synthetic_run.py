"""A run folder of any size that no engine has trained, for tests and benchmarks.

Its problems, words and tokenizer are those of the toy world; rollouts are worked
solutions with mistakes in them, plans are softened matchings of equal tokens.

    .venv/bin/python benchmarks/synthetic_run.py runs/synthetic --steps 200
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from transformers import AutoTokenizer

from topd_ray.config import load_config
from topd_ray.prompts import read_records
from topd_ray.records.rollout_file import SCHEMA as ROLLOUTS
from topd_ray.records.run_folder import RunFolder, write_json
from topd_ray.records.timeline_file import SCHEMA as CALLS
from topd_ray.records.window_file import SCHEMA as WINDOWS

ROOT = Path(__file__).parents[1]
WORLD = ROOT / "topd_ray" / "toy" / "world"
NUM_TOP = 8
SMALLEST_SHARE = 0.003


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything the folder holds."""

    steps: int = 6
    rollouts: int = 4
    """Of a step."""
    candidates: int = 12
    """Of a step; a third as many random and as many low-loss windows come with them."""
    plans: int = 16
    """Windows of a step with a plan."""
    window: int = 50
    """K, tokens."""


class SyntheticRun:
    """Writes the folder; the same seed gives the same files."""

    def __init__(
        self,
        path: Path,
        size: Size,
        *,
        seed: int = 0,
        strength: float = 1.0,
        method: Literal["topd", "takeover"] = "topd",
    ) -> None:
        """Write below `path`; a larger `strength` learns more.

        With `takeover`, the teacher goes on with the truth from the first mistake, and
        there are no windows.
        """
        self.size = size
        self.strength = strength
        self.method = method
        self.rng = np.random.default_rng(seed)
        overrides = [
            f"run.root={path.absolute().parent}",
            f"run.name={path.name}",
            f"run.steps={size.steps}",
            f"run.method={method}",
            f"prompts.path={WORLD / 'train.jsonl'}",
            f"learner.model={WORLD / 'student'}",
            f"teacher.model={WORLD / 'teacher'}",
        ]
        config = load_config(ROOT / "configs" / "local-toy.yaml", overrides)
        self.folder = RunFolder.create(config)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(WORLD / "student")
        self.records = read_records(WORLD / "train.jsonl")
        self.words = np.array(
            self.tokenizer.convert_tokens_to_ids([*"0123456789", "so", "then", "+"])
        )

    def write(self) -> RunFolder:
        """Write every part of a finished run."""
        for step in range(1, self.size.steps + 1):
            self.write_step(step)
        self.finish()
        return self.folder

    def write_step(self, step: int) -> None:
        """Write what one step leaves behind."""
        rollouts = [self._rollout(step, row) for row in range(self.size.rollouts)]
        has_windows = self.method == "topd"
        windows = list(self._windows(rollouts, step)) if has_windows else []
        calls = list(self._calls())
        for part, rows, schema in (
            ("rollouts", rollouts, ROLLOUTS),
            ("windows", windows, WINDOWS),
            ("timeline", calls, CALLS),
        ):
            if not rows:
                continue
            folder = self.folder.path / part
            folder.mkdir(exist_ok=True)
            table = pa.Table.from_pylist(rows, schema=schema)
            pq.write_table(table, folder / f"step_{step:06d}.parquet")
        self._append("metrics.jsonl", self._metrics(step, windows, rollouts, calls))

    def finish(self) -> None:
        """Write the events and the summary."""
        for event in EVENTS:
            self._append("events.jsonl", {"at": "2026-11-20T10:00:00.000", **event})
        write_json(self.folder.summary, self._summary())

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self.folder.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _skill(self, step: int) -> float:
        """Return how far the student has learned, from 0 to 1."""
        return float(1 - np.exp(-3 * self.strength * step / self.size.steps))

    def _rollout(self, step: int, row: int) -> dict[str, Any]:
        position = (step - 1) * self.size.rollouts + row
        record = self.records[(position // 2) % len(self.records)]
        prompt = self.tokenizer(record.turns[-1].text)["input_ids"]
        truth = self.tokenizer(record.reference)["input_ids"]
        wrong_frac = 0.12 * (1.1 - self._skill(step))
        response = [
            int(self.rng.choice(self.words))
            if self.rng.random() < wrong_frac
            else token
            for token in truth
        ]
        losses = self.rng.gamma(0.3, 0.25, len(response))
        is_wrong = np.array(response) != np.array(truth)
        losses[is_wrong] += self.rng.gamma(3.0, 0.9, int(is_wrong.sum()))
        is_taken_over = self.method == "takeover" and is_wrong.any()
        fork = int(np.argmax(is_wrong)) if is_taken_over else None
        return {
            "rollout_id": f"{position // 2:08d}.{position % 2}",
            "prompt_id": record.prompt_id,
            "policy_version": step - 1,
            "prompt_ids": prompt,
            "response_ids": response,
            "num_own": len(response),
            "finish_reason": "stop",
            "token_loss": losses.astype(np.float32),
            "logp": -self.rng.gamma(0.4, 0.4, len(response)).astype(np.float32),
            "logq": -(losses + 0.05).astype(np.float32),
            "takeover_position": fork,
            "takeover_ids": None if fork is None else truth[fork:],
            "truth": truth,
        }

    def _windows(
        self, rollouts: Sequence[dict[str, Any]], step: int
    ) -> Iterator[dict[str, Any]]:
        size = self.size
        threshold = 0.08 + 0.04 * (1 - self._skill(step))
        places = [
            (float(loss), row, place)
            for row, rollout in enumerate(rollouts)
            for place, loss in enumerate(rollout["token_loss"])
        ]
        places.sort(reverse=True)
        others = places[size.candidates :]
        third = size.candidates // 3
        picked = self.rng.choice(len(others), third, replace=False)
        groups = [("high", one) for one in places[: size.candidates]]
        groups += [("random", others[index]) for index in picked]
        groups += [("low", one) for one in others[-third:]]
        for index, (group, (loss, row, place)) in enumerate(groups):
            yield self._window(
                rollouts[row], place, group, loss, threshold, index < size.plans
            )

    def _window(
        self,
        rollout: dict[str, Any],
        place: int,
        group: str,
        loss: float,
        threshold: float,
        has_plan: bool,
    ) -> dict[str, Any]:
        until = place + self.size.window
        student = rollout["response_ids"][place:until]
        teacher = rollout["truth"][place:until]
        plan_KK, d_ot = self._plan(student, teacher)
        row: dict[str, Any] = {
            "rollout_id": rollout["rollout_id"],
            "policy_version": rollout["policy_version"],
            "position": place,
            "group": group,
            "resampled": False,
            "token_loss": loss,
            "d_ot": d_ot,
            "threshold": threshold,
            "divergent": group == "high" and d_ot > threshold,
            "student_ids": student,
            "teacher_ids": teacher,
        }
        if has_plan:
            is_kept = plan_KK >= SMALLEST_SHARE * plan_KK.max(1, keepdims=True)
            rows, columns = np.nonzero(is_kept)
            row |= {
                "plan_rows": rows,
                "plan_columns": columns,
                "plan_mass": plan_KK[is_kept].astype(np.float32),
            }
            for who, first, log in (
                ("student", student[0], "logp"),
                ("teacher", teacher[0], "logq"),
            ):
                ids, logs = self._top(int(first))
                row |= {f"{who}_top_ids": ids, f"{who}_top_{log}": logs}
        return row

    def _plan(
        self, student: Sequence[int], teacher: Sequence[int]
    ) -> tuple[NDArray[Any], float]:
        """Return a plan of uniform marginals and its cost."""
        a, b = np.array(student), np.array(teacher)
        distance = np.abs(np.arange(len(a))[:, None] - np.arange(len(b))[None])
        cost = np.where(a[:, None] == b[None], 0.0, 0.55) + 0.01 * np.minimum(
            distance, 9
        )
        plan = np.exp(-cost / 0.06)
        for _ in range(12):
            plan /= plan.sum(0, keepdims=True) * len(b)
            plan /= plan.sum(1, keepdims=True) * len(a)
        noise = float(self.rng.gamma(1.2, 0.012))
        return plan, float((plan * cost).sum()) + noise

    def _top(self, first: int) -> tuple[NDArray[Any], NDArray[Any]]:
        others = self.rng.choice(self.words, NUM_TOP, replace=False)
        ids = [first, *(int(token) for token in others if token != first)][:NUM_TOP]
        weights = np.sort(self.rng.dirichlet(np.full(len(ids), 0.3)))[::-1]
        return np.array(ids), np.log(np.maximum(weights, 1e-9)).astype(np.float32)

    def _calls(self) -> Iterator[dict[str, Any]]:
        now = 0.0
        for chunk in range(4):
            for actor, call, seconds, tokens in (
                ("rollout[0]", "roll_out", 0.6, 1500),
                ("teacher[0]", "score", 0.25, 1500),
                ("teacher[0]", "continue_from", 0.35, 900),
                ("prober[0]", "probe", 0.12, 0),
                ("learner[0]", "accumulate", 0.4, 1600),
            ):
                spent = seconds * float(self.rng.uniform(0.7, 1.3))
                stage = "learner" if actor == "learner[0]" else call
                yield {
                    "actor": actor,
                    "stage": stage,
                    "call": call,
                    "chunk": chunk,
                    "began_s": now,
                    "ended_s": now + spent,
                    "num_tokens": tokens or None,
                }
                now += spent * (0.55 if actor == "rollout[0]" else 0.8)
        yield {
            "actor": "learner[0]",
            "stage": "learner",
            "call": "step",
            "chunk": None,
            "began_s": now,
            "ended_s": now + 0.3,
            "num_tokens": None,
        }

    def _metrics(
        self,
        step: int,
        windows: Sequence[dict[str, Any]],
        rollouts: Sequence[dict[str, Any]],
        calls: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:
        num_tokens = sum(len(rollout["response_ids"]) for rollout in rollouts)
        noise = float(self.rng.normal(1, 0.06))
        left = 1.05 - self._skill(step)
        wall_s = max(call["ended_s"] for call in calls)
        return {
            "step": step,
            "loss": 0.58 * left * noise + 0.05,
            "loss/opd": 0.4 * left * noise + 0.04,
            "learner/rollout_kl": 1e-6 * noise,
            "learner/grad_norm": 2.2 * left * noise + 0.3,
            "learner/num_tokens": num_tokens,
            "learner/busy_s": 1.9,
            "rollout/num": len(rollouts),
            "rollout/num_tokens": num_tokens,
            "rollout/mean_tokens": num_tokens / len(rollouts),
            "rollout/entropy": 0.25 * left * noise + 0.03,
            "rollout/truncated_frac": 0.0,
            "rollout/busy_s": 2.4,
            "teacher/mean_token_loss": 0.3 * left * noise + 0.02,
            "teacher/busy_s": 2.4,
            "busy/rollout_frac": 0.36,
            "wait/rollout_on_step_frac": 0.64,
            "busy/teacher_frac": 0.41,
            "wait/teacher_on_roll_out_frac": 0.3,
            "wait/teacher_on_step_frac": 0.29,
            "busy/prober_frac": 0.09,
            "wait/prober_on_continue_from_frac": 0.6,
            "wait/prober_on_step_frac": 0.31,
            "busy/learner_frac": 0.38,
            "wait/learner_on_probe_frac": 0.42,
            "wait/learner_on_queue_frac": 0.2,
            "step/wall_s": wall_s,
            **(
                _of_windows(windows, 0.18 * left * noise + 0.01)
                if windows
                else _of_takeovers(rollouts)
            ),
        }

    def _summary(self) -> dict[str, Any]:
        steps = self.size.steps
        after = 0.34 + 0.55 * self._skill(steps)
        num_candidates = self.size.candidates * steps if self.method == "topd" else 0
        return {
            "name": self.folder.path.name,
            "method": self.method,
            "seed": 0,
            "steps": steps,
            "accuracy_before": 0.338,
            "accuracy_after": after,
            "accuracy_before_interval": [0.298, 0.381],
            "accuracy_after_interval": [after - 0.031, after + 0.027],
            "num_eval": 500,
            "wall_s": 4.1 * steps,
            "peak_rss_gb": 6.3,
            "student_tokens": 6_000 * steps,
            "trained_tokens": 6_000 * steps,
            "teacher_tokens": 3_000 * steps,
            "num_rollouts": self.size.rollouts * steps,
            "num_dropped_rollouts": {},
            "num_candidates": num_candidates,
            "num_divergent": round(num_candidates * 0.62),
            "stage_s": {
                "start": 24.1,
                "rollout": 2.4 * steps,
                "teacher": 2.4 * steps,
                "probe": 0.5 * steps,
                "learner": 1.9 * steps,
                "weights": 0.2 * steps,
            },
        }


def _of_windows(windows: Sequence[dict[str, Any]], loss: float) -> dict[str, Any]:
    high = [row for row in windows if row["group"] == "high"]
    num_divergent = sum(row["divergent"] for row in high)
    return {
        "loss/traj": loss,
        "probe/num_tokens": 3000,
        "probe/mean_d_ot": float(np.mean([row["d_ot"] for row in high])),
        "probe/busy_s": 0.5,
        "candidates/num": len(high),
        "windows/num_divergent": num_divergent,
        "windows/divergent_frac": num_divergent / len(high),
    }


def _of_takeovers(rollouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    taken = [row["takeover_ids"] for row in rollouts if row["takeover_ids"] is not None]
    return {
        "takeover/num": len(taken),
        "takeover/frac": len(taken) / len(rollouts),
        "takeover/num_tokens": sum(map(len, taken)),
    }


EVENTS: tuple[dict[str, Any], ...] = (
    {
        "event": "prompt_dropped",
        "prompt_id": "toy-9",
        "reason": "too_long",
        "detail": "70 tokens",
    },
    {
        "event": "replaced",
        "actor": "prober[0]",
        "error": "prober[0] died: killed by signal 9",
    },
    {
        "event": "step_skipped",
        "step": 3,
        "complaints": ["rollout_kl 0.31 is above health.max_rollout_kl 0.01"],
        "dump": "step_3",
    },
    {"event": "checkpoint", "step": 4, "path": "step_4"},
)
"""Some of each weight."""


def main() -> None:
    """Write a folder of the size that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--plans", type=int, default=64)
    asked = parser.parse_args()
    size = Size(
        steps=asked.steps,
        rollouts=asked.rollouts,
        candidates=asked.candidates,
        plans=asked.plans,
    )
    print(SyntheticRun(asked.path, size).write().path)


if __name__ == "__main__":
    main()
