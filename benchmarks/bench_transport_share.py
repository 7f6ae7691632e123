"""What transport and its cost matrices take of a TOPD step.

.venv/bin/python benchmarks/bench_transport_share.py
"""

import statistics
import tempfile
from pathlib import Path

from bench_price import busy_s, sections
from measure import MIN_PAIRS, Claim, save
from session import Session, TimedStep, in_session, session_config

WORDS = (
    "The models are toys of about 1 M parameters; the windows cost as much beside any"
    " model, but for wider embeddings. None of it but the last chunk's is waited for:"
    " it lies beside the rollouts. Tried: transport in the scaling domain (sixty times"
    " GeomLoss as it comes), and one product of a rollout's distinct tokens for all its"
    " cost matrices where that is less work."
)


def main() -> None:
    """Steps on one fleet that shares the cores; the first is a warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        config = session_config(Path(folder), sections(Path(folder)))
        report_transport(in_session(config, steps, cores=None)[1:])


async def steps(session: Session) -> list[TimedStep]:
    """As `topd train` would make them."""
    return await session.steps(session.config, MIN_PAIRS + 1, names=0)


def report_transport(topd: list[TimedStep]) -> None:
    """Seconds of the probe workers, who make ground costs and plans, in a step."""
    shares = [busy_s([step], "probe") / step.wall_s for step in topd]
    candidates = sum(step.metrics["candidates/num"] for step in topd) / len(topd)
    save(
        Claim(
            name="ot_cost_share",
            claim="OT + cost matrix, share of a step",
            against="the step's wall time",
            goal="<= 1 %",
            figure=(
                f"{statistics.median(shares):.2%} [{min(shares):.2%},"
                f" {max(shares):.2%}]"
            ),
            met=statistics.median(shares) <= 0.01,
            setting=(
                f"the probe workers' calls in {len(topd)} TOPD steps, {candidates:.0f}"
                " windows of up to 50 tokens a step, one thread; most of it lies"
                " beside the rollouts. The models are toys: with larger ones the share"
                " is smaller"
            ),
            words=WORDS,
        )
    )


if __name__ == "__main__":
    main()
