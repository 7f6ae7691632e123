"""Seconds of a step on a pretrained pair: this checkout, an older one, and TRL.

    python benchmarks/bench_real_step.py [--models DIR] [--base COMMIT] [--peer]

`make real` provides the models. Each side has the machine to itself, one after the
other, two threads an actor: the pair takes 20 GB. The older checkout is a worktree of
COMMIT, run in this environment; `--peer` is TRL's DistillationTrainer in its own
(`bench_peers.py`), against our OPD.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from bench_peers import PEERS, REQUIREMENTS, install
from measure import Claim, save

ROOT = Path(__file__).parents[1]
TRL_RUN = ROOT / "benchmarks" / "peers" / "trl_run.py"
STEPS = 3
"""The first one, in which kernels are set up, is not counted."""
THREADS = 2
PER_STEP, SAMPLES, MAX_TOKENS = 4, 2, 192
LR = 1e-5
DEADLINE_S = 2400.0
BASE_GOAL, PEER_GOAL = 1.5, 2.0


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step."""

    tokens: int
    """Of responses, trained on."""
    wall_s: float


def main() -> None:
    """Run the sides that are asked for, and claim."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "runs/real/models")
    parser.add_argument("--prompts", type=Path, default=ROOT / "runs/real/prompts")
    parser.add_argument("--base", help="commit of the older checkout")
    parser.add_argument("--peer", action="store_true", help="TRL too")
    asked = parser.parse_args()
    if not (asked.models / "qwen15").is_dir():
        sys.exit(f"no model in {asked.models}: `make real` fetches them")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        config = written_config(folder, asked.models, asked.prompts)
        if asked.base:
            ours = topd_steps(ROOT, config, folder, method="topd")
            with checkout(asked.base, folder) as base:
                theirs = topd_steps(base, config, folder, method="topd")
            save(claim("real_step_base", "TOPD", asked.base, ours, theirs, BASE_GOAL))
        if asked.peer:
            install()
            ours = topd_steps(ROOT, config, folder, method="opd")
            theirs = trl_steps(folder, asked.models, asked.prompts)
            save(claim("real_step_trl", "OPD", "TRL 1.16", ours, theirs, PEER_GOAL))


def written_config(folder: Path, models: Path, prompts: Path) -> Path:
    """A config that both checkouts read, of the pair and the sizes of `make real`."""
    teacher = with_the_students_template(folder, models)
    engine = {
        "dtype": "bfloat16",
        "max_num_seqs": 32,
        "kv_cache_gib": 0.5,
        "enforce_eager": True,
        "cpus": THREADS,
    }
    rows = (prompts / "train.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = folder / "prompts.jsonl"
    chosen.write_text("\n".join(rows[: STEPS * PER_STEP]) + "\n", encoding="utf-8")
    values = {
        "run": {"root": str(folder / "runs"), "steps": STEPS, "checkpoint_every": 99},
        "prompts": {"path": str(chosen), "max_tokens": 256, "per_step": PER_STEP},
        "rollout": {
            "engine": engine,
            "samples_per_prompt": SAMPLES,
            "max_response_tokens": MAX_TOKENS,
            "chunk_size": PER_STEP * SAMPLES,
        },
        "teacher": {"model": str(teacher), "engine": engine},
        "windows": {"token_budget": 1024},
        "learner": {
            "model": str((models / "qwen05").resolve()),
            "dtype": "bfloat16",
            "gradient_checkpointing": True,
            "lr": LR,
            "cpus": THREADS,
        },
        "cluster": {"object_store_gib": 0.5},
        "health": {"max_truncated": 1.0, "max_rollout_kl": 1.0},
    }
    path = folder / "pair.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def with_the_students_template(folder: Path, models: Path) -> Path:
    """The teacher under the student's chat template: an older checkout compares the
    templates as files.
    """
    made = folder / "teacher"
    made.mkdir()
    for file in (models / "qwen15").resolve().iterdir():
        if file.name not in ("chat_template.jinja", "tokenizer_config.json"):
            (made / file.name).symlink_to(file)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        file = (models / "qwen05").resolve() / name
        if file.is_file():
            shutil.copy(file, made / name)
    return made


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """A worktree of a commit, gone afterwards."""
    path = folder / "base"
    add = ["git", "worktree", "add", "--detach", "--quiet", path, commit]
    subprocess.run(add, cwd=ROOT, check=True)
    try:
        yield path
    finally:
        remove = ["git", "worktree", "remove", "--force", path]
        subprocess.run(remove, cwd=ROOT, check=True)


def topd_steps(root: Path, config: Path, folder: Path, *, method: str) -> list[Step]:
    """The counted steps of `topd train`, by the code below `root`."""
    name = f"{method}-{root.name}"
    command = [
        *(sys.executable, "-m", "topd_ray", "train", config),
        *(f"run.method={method}", f"run.name={name}"),
    ]
    # The folder that a module is run in comes first on its path.
    ended = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
        timeout=DEADLINE_S,
    )
    if ended.returncode:
        sys.exit(f"topd train below {root} ended with {ended.returncode}; see above")
    lines = (folder / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    return [
        Step(int(row["learner/num_tokens"]), float(row["step/wall_s"]))
        for row in rows[1:]
    ]


def trl_steps(folder: Path, models: Path, prompts: Path) -> list[Step]:
    """The counted steps of TRL's trainer, in its own environment."""
    rows = (prompts / "train.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = folder / "trl.jsonl"
    chosen.write_text(
        "\n".join(
            json.dumps({"messages": [{"role": "user", "content": row["prompt"]}]})
            for row in map(json.loads, rows[:PER_STEP])
        ),
        encoding="utf-8",
    )
    spec = folder / "trl.json"
    values = {
        "trainer": "distillation",
        "student": str((models / "qwen05").resolve()),
        "teacher": str((models / "qwen15").resolve()),
        "prompts": str(chosen),
        "threads": THREADS,
        "rollouts": PER_STEP * SAMPLES,
        "samples": SAMPLES,
        "micro_batch": SAMPLES,
        "lr": LR,
        "max_tokens": MAX_TOKENS,
        "max_prompt_tokens": 256,
        "seed": 0,
        "bfloat16": True,
    }
    spec.write_text(json.dumps(values), encoding="utf-8")
    ended = subprocess.run(
        [PEERS / "bin" / "python", TRL_RUN, spec],
        input="\n" * STEPS,
        stdout=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        | {"OMP_NUM_THREADS": str(THREADS)},
    )
    said = [line for line in ended.stdout.splitlines() if line.startswith('{"tokens"')]
    if len(said) < STEPS:
        sys.exit(f"TRL made {len(said)} of {STEPS} steps ({REQUIREMENTS.name})")
    return [Step(row["tokens"], row["wall_s"]) for row in map(json.loads, said[1:])]


def claim(
    name: str,
    method: str,
    against: str,
    ours: Sequence[Step],
    theirs: Sequence[Step],
    goal: float,
) -> Claim:
    """Medians of two steps each: one run of each side."""
    rates = [
        statistics.median(step.tokens / step.wall_s for step in steps)
        for steps in (ours, theirs)
    ]
    ratio = rates[0] / rates[1]
    return Claim(
        name=name,
        claim=f"{method} tokens/s on a pretrained pair, two cores",
        against=against,
        goal=f">= {goal:g} x",
        figure=f"{ratio:.2f} x ({rates[0]:.1f} against {rates[1]:.1f} tokens/s)",
        met=ratio >= goal,
        setting=(
            "Qwen2.5-Coder 1.5B teaches 0.5B, bfloat16, a step of"
            f" {PER_STEP * SAMPLES} rollouts of at most {MAX_TOKENS} tokens,"
            f" {THREADS} threads; one run of each side after the other, {STEPS - 1}"
            " steps counted of each. Wall seconds of a step until the next could start."
        ),
        details=[
            {"side": side, "step": number, "tokens": step.tokens, "wall s": step.wall_s}
            for side, steps in (("ours", ours), (against, theirs))
            for number, step in enumerate(steps, start=2)
        ],
    )


if __name__ == "__main__":
    main()
