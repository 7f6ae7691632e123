"""One step ahead: what it gains where engines and learner have cores of their own, what
it costs.

    .venv/bin/python benchmarks/bench_staleness.py

Tokens a second over steps of `rollout.max_staleness` 1 and 0 in turn on one fleet; then
the demo trained both ways, on equally many rollouts, from several seeds: accuracy on
problems of `dev`, which no run trains on.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_price import sections
from measure import MIN_PAIRS, Claim, Ratio, save
from session import Session, TimedStep, in_session, session_config

from topd_ray.config import Config
from topd_ray.statistics import t_interval

ROOT = Path(__file__).parents[1]
TOPD = Path(sys.executable).parent / "topd"
GOAL = 1.3
BLOCK = 4
"""Steps a reading; of them the first has nothing ahead, the last nothing beside it: not
counted.
"""
OWN_CORES = {"rollout": 0, "learner": 1, "teacher": 1, "prober": 1}
KINDS = tuple(OWN_CORES)
SEEDS = (0, 1, 2)
PROBLEMS = 500
RUN_DEADLINE_S = 600


def main() -> None:
    """Speed, then accuracy; or the one that is named."""
    parts = {"speed": compare_speed, "accuracy": compare_accuracy}
    for name in sys.argv[1:] or parts:
        parts[name]()


def compare_speed() -> None:
    """The claim `staleness`."""
    with tempfile.TemporaryDirectory() as folder:
        fields = sections(Path(folder))
        fields["rollout"]["max_staleness"] = 1
        config = session_config(Path(folder), fields)
        fresh, stale = in_session(config, in_turn_blocks, cores=OWN_CORES)
    report_speed(fresh, stale)


def compare_accuracy() -> None:
    """The claim `staleness_accuracy`."""
    with tempfile.TemporaryDirectory() as folder:
        report_accuracy([trained(Path(folder), seed) for seed in SEEDS])


def at_staleness(config: Config, steps: int) -> Config:
    """The same run, so many steps ahead."""
    return config.model_copy(
        update={"rollout": config.rollout.model_copy(update={"max_staleness": steps})}
    )


async def in_turn_blocks(
    session: Session,
) -> tuple[list[list[TimedStep]], list[list[TimedStep]]]:
    """Blocks of fresh steps and of stale ones; one step of warm-up."""
    await session.steps(at_staleness(session.config, 0), 1, names=0)
    fresh, stale = list[list[TimedStep]](), list[list[TimedStep]]()
    for pair in range(MIN_PAIRS):
        for staleness, blocks in ((0, fresh), (1, stale)):
            config = at_staleness(session.config, staleness)
            steps = await session.steps(config, BLOCK, names=1 + pair * BLOCK)
            blocks.append(steps[1:-1])
    return fresh, stale


def rate(block: list[TimedStep]) -> float:
    """Rollout tokens a second."""
    tokens = sum(step.metrics["rollout/num_tokens"] for step in block)
    return tokens / sum(step.wall_s for step in block)


def report_speed(fresh: list[list[TimedStep]], stale: list[list[TimedStep]]) -> None:
    """The ratio of rates, and how busy who was."""
    ratio = Ratio(tuple(rate(b) / rate(a) for a, b in zip(fresh, stale, strict=True)))
    save(
        Claim(
            name="staleness",
            claim="tokens/s at staleness 1",
            against="staleness 0",
            goal=f">= {GOAL}x",
            figure=f"{ratio}",
            met=ratio.median >= GOAL,
            setting=(
                "TOPD on random Qwen3 (see the price of TOPD), rollout engine on core"
                f" 0, teacher, prober and learner on core 1; blocks of {BLOCK} steps in"
                " turn on one fleet, the first and last of each block not counted"
            ),
            details=[row(0, fresh), row(1, stale)],
            words=words(fresh, stale),
        )
    )


def words(fresh: list[list[TimedStep]], stale: list[list[TimedStep]]) -> str:
    """What there is left to gain."""
    step_s, ahead_s = (mean_of(blocks, "step/wall_s") for blocks in (fresh, stale))
    busy = {kind: mean_of(fresh, f"busy/{kind}_frac") for kind in KINDS}
    one_by_one_s = step_s * sum(busy.values())
    core_1 = sum(share for kind, share in busy.items() if OWN_CORES[kind])
    return (
        f"One after the other, the stages of a step would take {one_by_one_s:.1f} s."
        f" Chunks that stream on within a step make it {step_s:.1f} s, and a step ahead"
        f" {ahead_s:.1f} s: most of what staleness is for is gained without it. In a"
        f" fresh step core 0 (rollouts) is already busy for {busy['rollout']:.0%} and"
        f" core 1 (all else) for {core_1:.0%}; a core that is never idle is the floor,"
        " with any number of steps begun ahead. The gain grows with the share of a"
        " step in which"
        " the slowest role waits: long tails of response lengths, large refits."
    )


def mean_of(blocks: list[list[TimedStep]], name: str) -> float:
    """Over all counted steps."""
    steps = [step for block in blocks for step in block]
    if name == "step/wall_s":
        return sum(step.wall_s for step in steps) / len(steps)
    return sum(step.metrics.get(name, 0.0) for step in steps) / len(steps)


def row(staleness: int, blocks: list[list[TimedStep]]) -> dict[str, Any]:
    """Means over all counted steps."""
    return {
        "staleness": staleness,
        "tokens/s": round(rate([step for block in blocks for step in block])),
        "step, s": round(mean_of(blocks, "step/wall_s"), 2),
        **{
            f"{kind} busy": f"{mean_of(blocks, f'busy/{kind}_frac'):.0%}"
            for kind in KINDS
        },
        "rollout KL, nats a token": mean_of(blocks, "learner/rollout_kl"),
    }


def trained(folder: Path, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Summaries of the demo at staleness 0 and 1."""
    return _demo(folder, seed, 0), _demo(folder, seed, 1)


def _demo(folder: Path, seed: int, staleness: int) -> dict[str, Any]:
    name = f"seed-{seed}-staleness-{staleness}"
    overrides = [
        f"run.root={folder}",
        f"run.name={name}",
        f"run.seed={seed}",
        f"rollout.max_staleness={staleness}",
        "evaluation.path=topd_ray/toy/world/dev.jsonl",
        f"evaluation.num_problems={PROBLEMS}",
        # no step begins beyond a checkpoint that is not yet written
        "run.checkpoint_every=40",
    ]
    command = [TOPD, "train", ROOT / "configs" / "local-toy.yaml", *overrides]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        subprocess.run(
            command, cwd=ROOT, check=True, timeout=RUN_DEADLINE_S, stdout=nowhere
        )
    summary: dict[str, Any] = json.loads((folder / name / "summary.json").read_text())
    return summary


def report_accuracy(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Whether the interval of the difference, over seeds, holds 0."""
    difference = t_interval(
        [
            100 * (stale["accuracy_after"] - fresh["accuracy_after"])
            for fresh, stale in pairs
        ]
    )
    save(
        Claim(
            name="staleness_accuracy",
            claim="accuracy at staleness 1, equally many rollouts",
            against="staleness 0",
            goal="within the interval",
            figure=(
                f"{difference.value:+.1f} points [{difference.low:.1f},"
                f" {difference.high:.1f}]"
            ),
            met=difference.low <= 0 <= difference.high,
            setting=(
                f"the demo, 40 steps of 64 rollouts, {len(SEEDS)} seeds, accuracy on"
                f" {PROBLEMS} dev problems, greedy; points, 95 % interval of the paired"
                " difference (t)"
            ),
            details=[
                {
                    "seed": seed,
                    "before, %": 100 * a["accuracy_before"],
                    "staleness 0, %": 100 * a["accuracy_after"],
                    "staleness 1, %": 100 * b["accuracy_after"],
                    "tokens 0": a["trained_tokens"],
                    "tokens 1": b["trained_tokens"],
                }
                for seed, (a, b) in zip(SEEDS, pairs, strict=True)
            ],
        )
    )


if __name__ == "__main__":
    main()
