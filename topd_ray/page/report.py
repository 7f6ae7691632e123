"""Run folder -> report.html: one file that holds everything it shows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from topd_ray.page.assets import page_html
from topd_ray.page.comparison import comparison
from topd_ray.page.run_page import RunPage
from topd_ray.page.step_blocks import BlockKind, StepBlocks
from topd_ray.records.open_run import open_run
from topd_ray.records.run_folder import write_whole

REPORT = "report.html"
MAX_BYTES = 45_000_000
"""Bytes of all blocks as the file holds them: base64 takes 4 bytes for 3."""
_LIST_SHARE = 0.4
"""Most of these bytes that the lists of windows may take; the rest is for plans and
rollouts.
"""


def write_report(
    path: Path, *, against: Path | None = None, max_bytes: int = MAX_BYTES
) -> Path:
    """Write `report.html` into a run folder and return its path.

    Args:
        path: the run folder.
        against: another run folder, which the page compares it with.
        max_bytes: limit of the blocks. Steps beyond it are left out, evenly over the
            run, and the page says so.

    Raises:
        UserError: there is no run folder.
    """
    page = RunPage(open_run(path))
    values = page.values()
    blocks: dict[str, bytes] = {}
    budget = max_bytes
    if against is not None:
        other = RunPage(open_run(against))
        values["comparison"] = comparison(
            (values, page.blocks), (other.values(), other.blocks)
        )
        shared = _shared_steps(values["comparison"], "b")
        theirs, _ = _fitting(other.blocks, ("rollouts",), shared, max_bytes // 4)
        blocks |= {f"b/{name}": block for name, block in theirs.items()}
        budget -= _size(blocks)
    blocks |= _own_blocks(page, values, budget)
    ungraded = page.ungraded()
    values["missing"] += [ungraded] if ungraded else []
    target = path.absolute() / REPORT
    write_whole(
        target,
        page_html(title=page.name, values=values, blocks=blocks, is_live=False),
    )
    return target


def _own_blocks(
    page: RunPage, values: dict[str, Any], max_bytes: int
) -> dict[str, bytes]:
    """Return the run's blocks that fit; note in `values` which steps they are of."""
    steps = values["block_steps"]
    lists, listed = _fitting(
        page.blocks, ("list",), steps, int(max_bytes * _LIST_SHARE)
    )
    details, detailed = _fitting(
        page.blocks,
        ("plans", "rollouts", "timeline"),
        sorted({*listed, *values["timeline_steps"]}),
        max_bytes - _size(lists),
    )
    values["missing"] += _left_out(steps, listed, detailed)
    values["block_steps"] = listed
    values["timeline_steps"] = [
        step for step in values["timeline_steps"] if f"timeline/{step}" in details
    ]
    return lists | details


def _left_out(
    steps: Sequence[int], listed: Sequence[int], detailed: Sequence[int]
) -> list[str]:
    notes = []
    if len(listed) < len(steps):
        notes.append(
            "The run is too large for one page: the reader holds the windows of"
            f" {len(listed):,} of {len(steps):,} steps, evenly over the run. The"
            " figures count all of them."
        )
    num_detailed = len({*listed} & {*detailed})
    if num_detailed < len(listed):
        notes.append(
            f"Tokens of rollouts and transport plans are here for {num_detailed:,} of"
            f" {len(steps):,} steps, evenly over the run; `topd watch` shows them all."
        )
    return notes


def _fitting(
    blocks: StepBlocks,
    kinds: Sequence[BlockKind],
    steps: Sequence[int],
    max_bytes: int,
) -> tuple[dict[str, bytes], list[int]]:
    """Return the blocks of as many steps as fit, and these steps, ascending."""
    found: dict[str, bytes] = {}
    taken = []
    size = 0
    for step in _spread(steps):
        made = {f"{kind}/{step}": blocks.block(kind, step) for kind in kinds}
        of_step = {name: block for name, block in made.items() if block is not None}
        if size + _size(of_step) > max_bytes:
            break
        size += _size(of_step)
        found |= of_step
        taken.append(step)
    return found, sorted(taken)


def _spread(steps: Sequence[int]) -> Iterator[int]:
    """Yield first and last, then the middle of each gap: any beginning is even."""
    if not steps:
        return
    done = {0, len(steps) - 1}
    yield steps[0]
    if len(steps) > 1:
        yield steps[-1]
    gaps = [(0, len(steps) - 1)]
    while gaps:
        wider = []
        for low, high in gaps:
            middle = (low + high) // 2
            if middle not in done:
                done.add(middle)
                yield steps[middle]
                wider += [(low, middle), (middle, high)]
        gaps = wider


def _size(blocks: dict[str, bytes]) -> int:
    """Return the bytes of blocks as base64."""
    return sum(-(-len(block) // 3) * 4 for block in blocks.values())


def _shared_steps(compared: dict[str, Any], side: str) -> list[int]:
    return sorted({step for row in compared["prompts"] for step, _ in row[side]})


__all__ = ["MAX_BYTES", "REPORT", "write_report"]
