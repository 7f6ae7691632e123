"""The price of a takeover: OPD, takeover, early stop, in turn on one fleet.

python benchmarks/bench_takeover.py
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bench_price import busy_s
from measure import MIN_PAIRS, Claim, Ratio, save
from session import ENGINE, Session, TimedStep, in_session, session_config
from world import STUDENT, TEACHER

from topd_ray.config import Config

STRIDE = 16


@dataclass(frozen=True)
class Case:
    """Where the forks are, and how far the teacher goes on behind them."""

    forks: str
    max_prob: float
    """Probability below which a token is an error. The random teacher finds nearly
    every token unlikely. So many are below this limit that the student keeps about
    half, or a quarter, of all tokens.
    """
    tokens: int | None
    """The most that the teacher decodes behind a fork; None: to the end."""
    goal: float
    """For the price of a step."""

    @property
    def name(self) -> str:
        """As in the claim."""
        short = "" if self.tokens is None else f", {self.tokens} tokens by the teacher"
        return f"forks {self.forks}{short}"

    @property
    def key(self) -> str:
        """As in the file of the claim."""
        short = "" if self.tokens is None else f"_{self.tokens}_tokens"
        return f"takeover_price_{self.forks}{short}"


CASES = (
    Case("half", 3.9e-3, None, 1.10),
    Case("early", 4.7e-3, None, 0.80),
    Case("early", 4.7e-3, 32, 0.80),
)
STAGES = ("roll_out", "read_ahead", "score", "take_over", "accumulate", "step")
Steps = dict[str, list[TimedStep]]


def main() -> None:
    """Forks in the middle of the rollouts, and early ones."""
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            config = session_config(Path(folder), sections(Path(folder), case))
            steps = in_session(config, in_turn_steps, cores=None)
        report(steps, case)


def sections(folder: Path, case: Case) -> dict[str, Any]:
    """48 rollouts a step, as long as those of the price of TOPD."""
    return {
        "run": {
            "method": "takeover",
            "root": str(folder / "runs"),
            "name": "session",
            "steps": 100_000,
        },
        "prompts": {
            "path": str(folder / "prompts.jsonl"),
            "per_step": 12,
            "max_tokens": 32,
        },
        "takeover": {
            "max_teacher_prob": case.max_prob,
            "max_teacher_entropy": 100.0,  # a random teacher is sure of nothing
            "stride": STRIDE,
            "tokens": case.tokens,
        },
        "rollout": {
            "samples_per_prompt": 4,
            "max_response_tokens": 1024,
            "chunk_size": 4,
            "num_top": 16,
            "engine": ENGINE | {"max_num_seqs": 24},
        },
        "windows": {"token_budget": 4096},
        "cluster": {"object_store_gib": 0.5, "max_chunks_in_flight": 12},
    }


def variants(config: Config) -> dict[str, Config]:
    """The three kinds of step, which need the same actors."""
    whole = config.takeover.model_copy(update={"stride": None})
    rollout = config.objective.model_copy(update={"trajectory": "rollout"})
    return {
        "OPD": config.model_copy(update={"objective": rollout, "takeover": whole}),
        "takeover": config.model_copy(update={"takeover": whole}),
        "takeover, stopped": config,
    }


async def in_turn_steps(session: Session) -> Steps:
    """One step of each kind, again and again; the first of each is a warm-up."""
    kinds = variants(session.config)
    steps: Steps = {name: [] for name in kinds}
    for names in range(MIN_PAIRS + 1):
        for name, config in kinds.items():
            steps[name] += await session.steps(config, 1, names=names)
    return {name: taken[1:] for name, taken in steps.items()}


def report(steps: Steps, case: Case) -> None:
    """The ratio with early stop, and where each kind of step spends its seconds."""
    stopped = ratio(steps["takeover, stopped"], steps["OPD"])
    whole = ratio(steps["takeover"], steps["OPD"])
    save(
        Claim(
            name=case.key,
            claim=f"whole step, takeover with early stop / OPD, {case.name}",
            against=f"without early stop {whole}",
            goal=f"<= {case.goal:.2f}",
            figure=str(stopped),
            met=stopped.median <= case.goal,
            setting=setting(steps),
            details=[row(name, taken) for name, taken in steps.items()],
        )
    )


def ratio(steps: list[TimedStep], base: list[TimedStep]) -> Ratio:
    """Of the wall clock, step by step."""
    return Ratio(tuple(b.wall_s / a.wall_s for a, b in zip(base, steps, strict=True)))


def setting(steps: Steps) -> str:
    """What a step was."""
    last = steps["OPD"][-1].metrics
    taken = steps["takeover"][-1].metrics
    cost = TEACHER.parameters_a_token / STUDENT.parameters_a_token
    return (
        f"{last['rollout/num']:.0f} rollouts of {last['rollout/mean_tokens']:.0f}"
        f" tokens on average, {taken['takeover/frac']:.0%} taken over, the student"
        f" keeps {taken['takeover/own_frac']:.0%} of their tokens; stride {STRIDE};"
        f" random Qwen3, teacher {cost:.2f} x the student's operations a token; vLLM,"
        " Ray, DeepSpeed, one thread an actor, two cores shared by all; steps in turn"
        " on one fleet; the teacher of an OPD step computes entropies too"
    )


def row(name: str, steps: list[TimedStep]) -> dict[str, Any]:
    """Median seconds of a step, of every kind of call in it, and tokens decoded."""
    last = steps[-1].metrics
    return (
        {"step": name, "wall, s": round(median(s.wall_s for s in steps), 2)}
        | {f"{stage}, s": round(busy_s(steps, stage), 2) for stage in STAGES}
        | {
            "student decodes": int(last["rollout/num_tokens"]),
            "teacher decodes": int(last["takeover/num_tokens"]),
            "trained": int(last["learner/num_tokens"]),
        }
    )


if __name__ == "__main__":
    main()
