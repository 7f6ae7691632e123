"""Two things timed in turn in one process, and what a benchmark leaves behind.

Every script here states one or more claims; `make bench` runs them all, each leaves
`benchmarks/claims/<name>.json`, and `benchmarks/results.py` writes them into
RESULTS.md.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from topd_ray.reports.provenance import commit, hardware

CLAIMS = Path(__file__).parent / "claims"
MIN_PAIRS = 5

Timed = Callable[[], float | None]
"""Does the work once; may return the seconds that count where setting up should not."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """One ratio a pair: how many times the first is better (or dearer) than the
    second.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{self.median:.3g} [{low:.3g}, {high:.3g}], {len(self.values)} pairs"


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of two things, run in turn."""

    first_s: tuple[float, ...]
    second_s: tuple[float, ...]

    @property
    def speedup(self) -> Ratio:
        """How many times faster the first is than the second."""
        pairs = zip(self.first_s, self.second_s, strict=True)
        return Ratio(tuple(second / first for first, second in pairs))

    @property
    def price(self) -> Ratio:
        """How many times the seconds of the second the first takes."""
        return Ratio(tuple(1 / value for value in self.speedup.values))


def in_turn(
    first: Timed, second: Timed, *, pairs: int = MIN_PAIRS, warm_up: int = 1
) -> Pairs:
    """A B A B …, after `warm_up` uncounted runs of each."""
    for _ in range(warm_up):
        first()
        second()
    seconds = [(_seconds(first), _seconds(second)) for _ in range(pairs)]
    return Pairs(*map(tuple, zip(*seconds, strict=True)))


def _seconds(work: Timed) -> float:
    start = time.perf_counter()
    own = work()
    return time.perf_counter() - start if own is None else own


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A row of RESULTS.md, and the table and words behind it."""

    name: str
    """File stem; unique among all scripts."""
    claim: str
    against: str
    goal: str
    figure: str
    """What was measured, with its spread: `str(Ratio)` or words."""
    met: bool | None
    """None where it cannot be measured on this machine."""
    setting: str
    """Sizes, threads, what exactly is timed: a sentence."""
    details: Sequence[dict[str, Any]] = field(default_factory=tuple)
    """Rows of a table; all with the same keys."""
    words: str = ""
    """Where the goal is missed: what was tried, what the profile says, what the floor
    is.
    """


def _has_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


def save(claim: Claim) -> None:
    """Print the claim and leave it, with hardware, commit and command, for
    RESULTS.md.
    """
    code, dirty = commit()
    script = Path(sys.argv[0])
    CLAIMS.mkdir(exist_ok=True)
    record = asdict(claim) | {
        "command": " ".join(["python", f"benchmarks/{script.name}", *sys.argv[1:]]),
        "hardware": hardware(),
        "commit": code,
        "dirty": dirty,
        "date": datetime.now(UTC).date().isoformat(),
    }
    path = CLAIMS / f"{claim.name}{'.gpu' if _has_gpu() else ''}.json"
    path.write_text(
        json.dumps(record, indent=2, default=float) + "\n", encoding="utf-8"
    )
    verdict = {True: "met", False: "MISSED", None: "not measured here"}[claim.met]
    print(
        f"{claim.claim} / {claim.against}: {claim.figure} (goal {claim.goal}:"
        f" {verdict})"
    )
