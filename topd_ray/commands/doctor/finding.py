"""What one check of `topd doctor` has seen."""

from dataclasses import dataclass
from typing import Literal

Grade = Literal["ok", "note", "fails", "not looked at"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of the table.

    Example: Finding(check="/dev/shm", verdict="fails", seen="0.06 GiB free, 64 GiB
    object store", way_out="docker run --shm-size=75g").
    """

    check: str
    """What was looked at."""
    verdict: Grade
    """`fails` would stop a run; `note` would make it slower, or stop some runs."""
    seen: str
    """The value seen."""
    way_out: str = ""
    """What to do; empty where nothing is wrong."""


def not_looked_at(check: str, why: str) -> Finding:
    """Return the row of a check that cannot be made here."""
    return Finding(check=check, verdict="not looked at", seen=why)
