"""On-policy distillation by us and by TRL: same models, prompts, rollouts a step, loss,
two cores.

    .venv/bin/python benchmarks/bench_peers.py

TRL runs in a separate environment (`benchmarks/.peers-venv`, made at first use from
`benchmarks/peers/requirements.txt`). All systems are started, then do a step each in
turn.
"""

import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from measure import MIN_PAIRS, Claim, Ratio, save
from peers.pair import make_pair
from session import ENGINE, Session, in_session, session_config

HERE = Path(__file__).parent
ROOT = HERE.parent
WORLD = ROOT / "topd_ray" / "toy" / "world"
PEERS = HERE / ".peers-venv"
REQUIREMENTS = HERE / "peers" / "requirements.txt"
TITLES = {"distillation": "TRL 1.16 DistillationTrainer", "gkd": "TRL 1.16 GKDTrainer"}
THREADS = 2
LR = 1e-12
"""All train the student they were given, for as long as it is timed."""
SAMPLES = 4
WARM_UP = 2
MAX_PROMPT_TOKENS = 64
STEP_DEADLINE_S = 300.0
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
    threads: int
    """Of each of our three actors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step of one system."""

    tokens: int
    """Of responses, trained on."""
    wall_s: float
    cpu_s: float
    """Of all its processes."""
    loss: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.wall_s


Steps = Mapping[str, list[Step]]
"""By system; the first of each, then those timed in turn."""


def main() -> None:
    """Install, run everything in turn, claim."""
    install()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        results = [(one, run_in_turn(one, folder)) for one in settings(folder)]
    for trainer in TITLES:
        save(claim(trainer, results))


def settings(folder: Path) -> list[Setting]:
    """The toy world, which is nearly all overhead, and a pair in which arithmetic
    counts.
    """
    student, teacher = make_pair(WORLD / "student", folder / "pair")
    return [
        Setting(
            name="toy world, 0.28 M and 0.77 M",
            student=WORLD / "student",
            teacher=WORLD / "teacher",
            rollouts=64,
            max_tokens=224,
            threads=1,
        ),
        Setting(
            name="random pair, 23 M and 63 M",
            student=student,
            teacher=teacher,
            rollouts=16,
            max_tokens=512,
            threads=1,
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


def run_in_turn(setting: Setting, folder: Path) -> Steps:
    """Ours, TRL's one, TRL's other, ours, …"""
    prompts = folder / "prompts-of-a-step.jsonl"
    lines = (
        (WORLD / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    )
    prompts.write_text("".join(lines[: setting.rollouts // SAMPLES]), encoding="utf-8")
    peers = {name: Peer(setting, prompts, folder, name) for name in TITLES}

    async def steps_in_turn(session: Session) -> Steps:
        steps: dict[str, list[Step]] = {name: [] for name in ("ours", *TITLES)}
        for turn in range(WARM_UP + MIN_PAIRS):
            steps["ours"].append(await our_step(session, turn))
            for name, peer in peers.items():
                steps[name].append(await asyncio.to_thread(peer.step))
            rates = ", ".join(
                f"{name} {done[-1].rate:.0f}" for name, done in steps.items()
            )
            print(f"{setting.name}, turn {turn}: {rates} tokens/s", flush=True)
        return steps

    try:
        steps: Steps = in_session(
            our_config(setting, prompts, folder), steps_in_turn, cores=None
        )
    finally:
        for peer in peers.values():
            peer.close()
    return steps


def our_config(setting: Setting, prompts: Path, folder: Path) -> Any:
    """A plain OPD run, as `topd train` would make it of run.method=opd."""
    engine = ENGINE | {"cpus": setting.threads, "max_num_seqs": setting.rollouts}
    return session_config(
        folder,
        {
            "run": {
                "root": str(folder),
                "name": setting.student.parent.name,
                "method": "opd",
            },
            "prompts": {
                "path": str(prompts),
                "per_step": setting.rollouts // SAMPLES,
                "max_tokens": MAX_PROMPT_TOKENS,
            },
            "rollout": {
                "engine": engine,
                "samples_per_prompt": SAMPLES,
                "max_response_tokens": setting.max_tokens,
                "chunk_size": max(setting.rollouts // 4, 1),
                "num_top": 1,  # likely ids are for picking candidates, and OPD has none
            },
            "teacher": {"model": str(setting.teacher), "engine": engine},
            "learner": {
                "model": str(setting.student),
                "dtype": "float32",
                "lr": LR,
                "cpus": setting.threads,
            },
        },
    )


async def our_step(session: Session, turn: int) -> Step:
    """From the first request of its rollouts until the rollout engine has the new
    weights.
    """
    busy_s = cpu_seconds()
    began = time.perf_counter()
    (done,) = await session.steps(session.config, 1, names=turn)
    wall_s = time.perf_counter() - began
    return Step(
        tokens=int(done.metrics["learner/num_tokens"]),
        wall_s=wall_s,
        cpu_s=cpu_seconds() - busy_s,
        loss=done.metrics["loss/opd"],
    )


def cpu_seconds() -> float:
    """Of the driver and all actors, since they began."""
    seconds = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended since it was listed
            seconds += _worker_seconds(process)
    return time.process_time() + seconds


def _worker_seconds(process: psutil.Process) -> float:
    # Ray names an actor's process after its class; the raylet and the store are what
    # every Ray program pays.
    if not process.name().startswith("ray::"):
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)


class Peer:
    """One of TRL's trainers in a separate process, at rest between steps."""

    def __init__(
        self, setting: Setting, prompts: Path, folder: Path, trainer: str
    ) -> None:
        """All rollouts of a step are one micro-batch: fewer and larger matrix
        products.
        """
        spec = {
            "trainer": trainer,
            "student": str(setting.student),
            "teacher": str(setting.teacher),
            "prompts": str(prompts),
            "threads": THREADS,
            "rollouts": setting.rollouts,
            "samples": SAMPLES,
            "micro_batch": setting.rollouts,
            "lr": LR,
            "max_tokens": setting.max_tokens,
            "max_prompt_tokens": MAX_PROMPT_TOKENS,
            "seed": 0,
        }
        path = folder / f"{trainer}.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        self._said = (folder / f"{trainer}.txt").open("w+", encoding="utf-8")
        environment = {
            key: value for key, value in os.environ.items() if key != "PYTHONPATH"
        }
        self._process = subprocess.Popen(
            [PEERS / "bin" / "python", HERE / "peers" / "trl_run.py", path],
            env=environment | {"OMP_NUM_THREADS": str(THREADS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def step(self) -> Step:
        """Let one go; SystemExit with what it said where it ended or took too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watch = threading.Timer(STEP_DEADLINE_S, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            for line in self._process.stdout:  # TRL prints other lines too
                if line.startswith('{"tokens"'):
                    row = json.loads(line)
                    return Step(**row)
        finally:
            watch.cancel()
        self._said.seek(0)
        sys.exit(
            f"TRL ended or took over {STEP_DEADLINE_S:.0f} s:"
            f" {self._said.read()[-4000:]}"
        )

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._said.close()


def claim(trainer: str, results: list[tuple[Setting, Steps]]) -> Claim:
    """A pair is one turn."""
    ratios = {
        setting.name: Ratio(
            tuple(
                ours.rate / theirs.rate
                for ours, theirs in zip(
                    timed(steps["ours"]), timed(steps[trainer]), strict=True
                )
            )
        )
        for setting, steps in results
    }
    return Claim(
        name=f"peers_trl_{trainer}",
        claim="OPD tokens/s, two cores",
        against=TITLES[trainer],
        goal=f">= {GOAL:g} x",
        figure="; ".join(f"{ratio} x ({name})" for name, ratio in ratios.items()),
        met=all(ratio.median >= GOAL for ratio in ratios.values()),
        setting=SETTING,
        details=[
            row(setting, name, steps[name])
            for setting, steps in results
            for name in ("ours", trainer)
        ],
        words=WORDS[trainer],
    )


SETTING = (
    "Response tokens trained over wall seconds of a step, from its first request for a"
    " rollout until the next could start with the new weights; all systems running, a"
    f" step each in turn, {WARM_UP} warm-up turns. Same models, prompts, {SAMPLES}"
    " samples a prompt, limits, temperature 1, float32, reverse KL over the whole"
    " vocabulary, one update a step, no evaluation, no checkpoints, activations kept;"
    " the learning rate is next to nothing, so that all go on sampling from the same"
    f" student. TRL has {THREADS} threads and all rollouts in one micro-batch; ours has"
    " a rollout engine, a teacher and a learner as Ray actors of one thread each on"
    " the same two cores, staleness 0."
)
PROFILE = (
    "On the toy world all systems spend most of their time in Python, once a decoding"
    " step for all sequences, and about as many processor seconds a token (table):"
    " responses are about equally long and decoded all at once, so continuous batching"
    " has nothing to fill, and what is left to win is that three actors work on two"
    " cores. Where lengths are spread, TRL decodes every row, and trains every row's"
    " padding, until the longest is done. "
)
WORDS = {
    "distillation": (
        PROFILE
        + "TRL generates with transformers: its vLLM mode asks for vLLM 0.22 to 0.31"
        " and refreshes the weights with `load_weights`, which on a CPU does not"
        " reach linear layers once vLLM has repacked them (read in its code, not"
        " run)."
    ),
    "gkd": (
        PROFILE
        + "The loss that GKDTrainer prints is divided by the number of tokens of the"
        " *dataset's* answers (here two a prompt), not of those it sampled, so it is"
        " larger by the quotient of the two; clipping hides that in the update."
    ),
}


def timed(steps: list[Step]) -> list[Step]:
    """Without the warm-up."""
    return steps[WARM_UP:]


def row(setting: Setting, system: str, steps: list[Step]) -> dict[str, Any]:
    """A line of the table."""
    rates = [step.rate for step in timed(steps)]
    return {
        "models": setting.name,
        "system": TITLES.get(system, system),
        "rollouts a step": setting.rollouts,
        "mean response tokens": (
            statistics.mean(s.tokens for s in timed(steps)) / setting.rollouts
        ),
        "limit": setting.max_tokens,
        "tokens/s": (
            f"{statistics.median(rates):.0f} [{min(rates):.0f}, {max(rates):.0f}]"
        ),
        "CPU s a 1,000 tokens": (
            1000 * statistics.median(step.cpu_s / step.tokens for step in timed(steps))
        ),
        "mean loss": statistics.mean(step.loss for step in steps),
    }


if __name__ == "__main__":
    main()
