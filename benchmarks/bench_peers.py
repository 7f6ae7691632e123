"""On-policy distillation by us and by TRL: same models, prompts, rollouts a step, loss, two cores.

    .venv/bin/python benchmarks/bench_peers.py

TRL runs in an environment of its own (`benchmarks/.peers-venv`, made at first use from
`benchmarks/peers/requirements.txt`); ours is `topd train` with its Ray, vLLM and DeepSpeed actors.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Claim, Ratio, save
from peers.pair import make_pair

HERE = Path(__file__).parent
ROOT = HERE.parent
WORLD = ROOT / "topd_ray" / "toy" / "world"
PEERS = HERE / ".peers-venv"
REQUIREMENTS = HERE / "peers" / "requirements.txt"
THREADS = 2
LR = 1e-3
SAMPLES = 4
WARM_STEPS = 3
MAX_PROMPT_TOKENS = 64
RUN_DEADLINE_S = 400.0
PEER_TRAINERS = {"distillation": "TRL 1.16 DistillationTrainer", "gkd": "TRL 1.16 GKDTrainer"}
GOAL = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One pair of models and what a step consists of."""

    name: str
    student: Path
    teacher: Path
    rollouts: int
    """A step; `SAMPLES` of each prompt."""
    max_tokens: int
    steps: int
    """Timed ones, after `WARM_STEPS` others."""
    rounds: int
    """How often all systems run in turn."""

    @property
    def all_steps(self) -> int:
        """Timed or not."""
        return self.steps + WARM_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step of one system."""

    tokens: int
    wall_s: float
    loss: float

    @property
    def rate(self) -> float:
        """Response tokens trained a second."""
        return self.tokens / self.wall_s


Runs = dict[str, list[list[Step]]]
"""System -> round -> all its steps; the warm ones too."""


def main() -> None:
    """Install, run everything in turn, claim."""
    install()
    with tempfile.TemporaryDirectory() as made:
        results = [(setting, run_in_turn(setting, Path(made))) for setting in settings(Path(made))]
    for trainer, title in PEER_TRAINERS.items():
        save(claim(trainer, title, results))


def settings(folder: Path) -> list[Setting]:
    """The toy world, which is nearly all overhead, and a pair in which arithmetic counts."""
    student, teacher = make_pair(WORLD / "student", folder / "pair")
    return [
        Setting(
            name="toy world (0.28 M and 0.77 M)",
            student=WORLD / "student",
            teacher=WORLD / "teacher",
            rollouts=64,
            max_tokens=224,
            steps=6,
            rounds=2,
        ),
        Setting(
            name="random pair (23 M and 63 M)",
            student=student,
            teacher=teacher,
            rollouts=16,
            max_tokens=512,
            steps=5,
            rounds=1,
        ),
    ]


def install() -> None:
    """Make TRL's environment, unless it is there with these very requirements."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp = PEERS / "installed"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return
    print(f"installing TRL into {PEERS.relative_to(ROOT)}", flush=True)
    venv.create(PEERS, with_pip=True)
    pip = [PEERS / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
    stamp.write_text(digest, encoding="utf-8")


def run_in_turn(setting: Setting, folder: Path) -> Runs:
    """Ours, then each of TRL's trainers; `setting.rounds` times."""
    prompts = folder / "prompts.jsonl"
    lines = (WORLD / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    needed = setting.all_steps * setting.rollouts // SAMPLES
    prompts.write_text("".join(lines[:needed]), encoding="utf-8")
    runs: Runs = {name: [] for name in ("ours", *PEER_TRAINERS)}
    for turn in range(setting.rounds):
        runs["ours"].append(ours(setting, prompts, folder / f"runs-{turn}"))
        for trainer in PEER_TRAINERS:
            runs[trainer].append(theirs(setting, prompts, folder, trainer))
        for name, rounds in runs.items():
            print(f"{setting.name}, {name}: {spread(rates(rounds[-1:]))} tokens/s", flush=True)
    return runs


def ours(setting: Setting, prompts: Path, root: Path) -> list[Step]:
    """`topd train` with run.method=opd, read from metrics.jsonl."""
    overrides = {
        "run.root": root,
        "run.name": "opd",
        "run.steps": setting.all_steps,
        "run.checkpoint_every": setting.all_steps,
        "prompts.path": prompts,
        "prompts.per_step": setting.rollouts // SAMPLES,
        "rollout.samples_per_prompt": SAMPLES,
        "rollout.max_response_tokens": setting.max_tokens,
        "rollout.chunk_size": max(setting.rollouts // 4, 1),
        "teacher.model": setting.teacher,
        "learner.model": setting.student,
        "learner.lr": LR,
        "evaluation.path": "null",
    }
    topd = Path(sys.executable).parent / "topd"
    config = ROOT / "configs" / "toy" / "opd.yaml"
    run([topd, "train", config, *(f"{key}={value}" for key, value in overrides.items())], root)
    rows = read_lines((root / "opd" / "metrics.jsonl").read_text(encoding="utf-8"))
    return [
        Step(tokens=row["rollout/num_tokens"], wall_s=row["step/wall_s"], loss=row["loss/opd"])
        for row in rows
    ]


def theirs(setting: Setting, prompts: Path, folder: Path, trainer: str) -> list[Step]:
    """`peers/trl_run.py` in its own environment; all rollouts of a step in one micro-batch."""
    spec = {
        "trainer": trainer,
        "student": str(setting.student),
        "teacher": str(setting.teacher),
        "prompts": str(prompts),
        "threads": THREADS,
        "steps": setting.all_steps,
        "rollouts": setting.rollouts,
        "samples": SAMPLES,
        "micro_batch": setting.rollouts,
        "lr": LR,
        "max_tokens": setting.max_tokens,
        "max_prompt_tokens": MAX_PROMPT_TOKENS,
        "seed": 0,
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    command = [PEERS / "bin" / "python", HERE / "peers" / "trl_run.py", path]
    rows = read_lines(run(command, folder))
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    return [
        Step(tokens=row["tokens"], wall_s=row["wall_s"], loss=losses[row["step"]])
        for row in rows
        if "tokens" in row
    ]


def run(command: Iterable[Any], folder: Path) -> str:
    """Standard output; on failure what it said, and out."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "stderr.txt"
    with said.open("w", encoding="utf-8") as errors:
        ended = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=RUN_DEADLINE_S,
        )
    if ended.returncode:
        raise SystemExit(f"{ended.stdout[-2000:]}\n{said.read_text(encoding='utf-8')[-4000:]}")
    return ended.stdout


def read_lines(text: str) -> list[dict[str, Any]]:
    """The lines that are JSON objects; TRL prints others between them."""
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"')]


def rates(rounds: list[list[Step]]) -> list[float]:
    """Tokens a second of the timed steps."""
    return [step.rate for steps in rounds for step in steps[WARM_STEPS:]]


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.0f} [{min(values):.0f}, {max(values):.0f}]"


def claim(trainer: str, title: str, results: list[tuple[Setting, Runs]]) -> Claim:
    """Step against step of the same place in the same round."""
    ratios = {
        setting.name: Ratio(
            tuple(a / b for a, b in zip(rates(runs["ours"]), rates(runs[trainer]), strict=True))
        )
        for setting, runs in results
    }
    names = ("ours", trainer)
    return Claim(
        name=f"peers_trl_{trainer}",
        claim="OPD tokens/s",
        against=title,
        goal=f">= {GOAL:g} x",
        figure="; ".join(f"{name}: {ratio} x" for name, ratio in ratios.items()),
        met=all(ratio.median >= GOAL for ratio in ratios.values()),
        setting=SETTING.format(warm=WARM_STEPS, threads=THREADS),
        details=[row(setting, name, runs[name]) for setting, runs in results for name in names],
    )


SETTING = (
    "Response tokens trained over wall seconds, end of step to end of step, after {warm} warm "
    "steps; a pair is the step of the same place in runs made in turn. Same models, prompts, "
    "samples a prompt, limits, temperature 1, float32, reverse KL over the whole vocabulary, one "
    "update a step, no evaluation, no checkpoints. TRL has {threads} threads; ours is "
    "`topd train configs/toy/opd.yaml`: rollout engine, teacher and learner as actors of one "
    "thread each on the same two cores, staleness 0."
)


def row(setting: Setting, system: str, rounds: list[list[Step]]) -> dict[str, Any]:
    """A line of the table."""
    timed = [step for steps in rounds for step in steps[WARM_STEPS:]]
    return {
        "models": setting.name,
        "system": PEER_TRAINERS.get(system, system),
        "rollouts a step": setting.rollouts,
        "mean response tokens": statistics.mean(step.tokens for step in timed) / setting.rollouts,
        "limit": setting.max_tokens,
        "tokens/s, median [range]": spread(rates(rounds)),
        "loss of step 1": rounds[0][0].loss,
    }


if __name__ == "__main__":
    main()
