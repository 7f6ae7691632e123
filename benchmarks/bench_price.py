"""TOPD's price: the same step with and without the near future, in turn, on one fleet.

python benchmarks/bench_price.py
"""

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from measure import MIN_PAIRS, Claim, Ratio, save
from session import Session, TimedStep, in_session, session_config
from world import STUDENT, TEACHER

PAPER = 1.41
SECTIONS: dict[str, Any] = {
    "prompts": {"path": "", "per_step": 12, "max_tokens": 32},
    "rollout": {"samples_per_prompt": 4, "max_response_tokens": 1024, "chunk_size": 4},
    "windows": {"token_budget": 4096},
    "cluster": {"object_store_gib": 0.5, "max_chunks_in_flight": 12},
}
OWN_CORES = {"rollout": 0, "learner": 0, "teacher": 1, "prober": 1}
STAGES = (
    "roll_out",
    "score",
    "continue_from",
    "probe",
    "accumulate",
    "step",
    "publish",
    "update",
)


def main() -> None:
    """Both placements, with and without a step ahead."""
    for cores, goal in ((OWN_CORES, 1.10), (None, 1.25)):
        with tempfile.TemporaryDirectory() as folder:
            config = session_config(Path(folder), sections(Path(folder)))
            opd, topd = in_session(config, in_turn_steps, cores=cores)
        report(opd, topd, own=cores is not None, goal=goal)


def sections(folder: Path) -> dict[str, Any]:
    """The bench's own, without the path that the world sets."""
    fields = {name: dict(values) for name, values in SECTIONS.items()}
    fields["prompts"]["path"] = str(folder / "prompts.jsonl")
    fields["rollout"] |= {"engine": engine(max_num_seqs=24), "num_top": 16}
    return fields


def engine(**fields: Any) -> dict[str, Any]:
    """The session's engine section, changed."""
    from session import ENGINE

    return ENGINE | fields


async def in_turn_steps(session: Session) -> tuple[list[TimedStep], list[TimedStep]]:
    """OPD, TOPD, OPD, TOPD, …; the first of each is a warm-up."""
    opd_config = session.config.model_copy(
        update={
            "objective": session.config.objective.model_copy(
                update={"lambda_traj": 0.0}
            )
        }
    )
    opd, topd = list[TimedStep](), list[TimedStep]()
    for names in range(MIN_PAIRS + 1):
        opd += await session.steps(opd_config, 1, names=names)
        topd += await session.steps(session.config, 1, names=names)
    return opd[1:], topd[1:]


def report(
    opd: list[TimedStep], topd: list[TimedStep], *, own: bool, goal: float
) -> None:
    """The ratio, and where each kind of step spends its seconds."""
    ratio = Ratio(tuple(b.wall_s / a.wall_s for a, b in zip(opd, topd, strict=True)))
    where = "own" if own else "shared"
    whose = "cores of their own" if own else "the same cores"
    save(
        Claim(
            name=f"price_{where}_cores",
            claim=f"whole step, TOPD / OPD, teacher and student on {whose}",
            against=f"the paper's {PAPER}",
            goal=f"<= {goal:.2f}",
            figure=str(ratio),
            met=ratio.median <= goal,
            setting=setting(topd[-1].metrics, own=own),
            details=[row("OPD", opd), row("TOPD", topd)],
        )
    )


def setting(last: dict[str, float], *, own: bool) -> str:
    """What a step was."""
    share = last["candidates/num"] / last["rollout/num_tokens"]
    cost = TEACHER.parameters_a_token / STUDENT.parameters_a_token
    pinned = (
        "; rollout and learner pinned to core 0, teacher and prober to core 1"
        if own
        else ""
    )
    return (
        f"{last['rollout/num']:.0f} rollouts of {last['rollout/mean_tokens']:.0f}"
        f" tokens on average, {last['candidates/num']:.0f} candidates ({share:.2%}), K"
        f" = 50; random Qwen3, teacher {cost:.2f} x the student's operations a token;"
        " vLLM, Ray, DeepSpeed, one thread an actor; steps in turn on one fleet, the"
        f" same rollouts in both{pinned}"
    )


def row(name: str, steps: list[TimedStep]) -> dict[str, Any]:
    """Median seconds of a step, and of every kind of call in it, summed over its
    chunks.
    """
    busy = {stage: busy_s(steps, stage) for stage in STAGES}
    return (
        {"step": name, "wall, s": round(median(s.wall_s for s in steps), 2)}
        | {f"{stage}, s": round(seconds, 2) for stage, seconds in busy.items()}
        | {"prefix from cache": f"{steps[-1].metrics['probe/cached_frac']:.1%}"}
    )


def busy_s(steps: list[TimedStep], what: str) -> float:
    """Median over steps of the seconds that all calls of a kind took."""
    return median(
        sum(work.ended_s - work.began_s for work in step.works if work.what == what)
        for step in steps
    )


if __name__ == "__main__":
    main()
