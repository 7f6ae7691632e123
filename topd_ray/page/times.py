"""Where the time went: busy shares and waits of each kind of actor."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

_BUSY = re.compile(r"busy/(.+)_frac")
_WAIT = re.compile(r"wait/(.+?)_on_(.+)_frac")
_ORDER = ("rollout", "teacher", "prober", "learner")
"""Kinds of actor, in the order in which a prompt passes them."""


def time_shares(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each kind of actor its busy share and what it waited for.

    Shares are of the wall clock of all steps but the first, which warms engines up.
    """
    counted = lines[1:] or lines
    total_s = sum(_seconds(line) for line in counted)
    if total_s <= 0:
        return []
    busy: dict[str, float] = {}
    waits: dict[str, dict[str, float]] = defaultdict(dict)
    for name in dict.fromkeys(name for line in counted for name in line):
        spent = sum(float(line.get(name) or 0) * _seconds(line) for line in counted)
        if found := _BUSY.fullmatch(name):
            busy[found[1]] = spent / total_s
        elif found := _WAIT.fullmatch(name):
            waits[found[1]][found[2]] = spent / total_s
    return [
        {
            "actor": kind,
            "busy": busy[kind],
            "waits": sorted(
                (
                    {"on": stage, "share": share}
                    for stage, share in waits[kind].items()
                    if share > 0
                ),
                key=lambda wait: -float(str(wait["share"])),
            ),
        }
        for kind in sorted(busy, key=_place)
    ]


def _seconds(line: Mapping[str, Any]) -> float:
    return float(line.get("step/wall_s") or 0)


def _place(kind: str) -> tuple[int, str]:
    return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), kind)


__all__ = ["time_shares"]
