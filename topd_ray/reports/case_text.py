"""Case -> text: all continuations side by side, then every position's top tokens."""

from collections.abc import Sequence

from topd_ray.reports.case_types import Case, CaseState, RankedTokens

_WIDTH = 100
_CELL = 17


def as_written(case: Case) -> str:
    """Return prompt, prefix, the continuations as rows, then a block a state."""
    rows = [("teacher", case.teacher), ("rollout", case.own)]
    for state in case.states:
        rows.append((state.name, tuple(step.token for step in state.steps)))
    parts = [
        f"prompt   {case.prompt}",
        f"prefix   {case.prefix}",
        "",
        *_aligned(rows),
    ]
    for state in case.states:
        parts += ["", *_block(state)]
    return "\n".join(parts)


def _aligned(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return one line a row, with columns as wide as their longest token."""
    longest = max(len(tokens) for _, tokens in rows)
    widths = [0] * longest
    for _, tokens in rows:
        for place, token in enumerate(tokens):
            widths[place] = max(widths[place], len(token))
    name_width = max(len(name) for name, _ in rows)
    lines = []
    for name, tokens in rows:
        # A continuation that ended early has fewer tokens than there are columns.
        cells = zip(tokens, widths, strict=False)
        padded = " ".join(f"{token:<{width}}" for token, width in cells)
        lines.append(f"{name:<{name_width}}  {padded}")
    return lines


def _block(state: CaseState) -> list[str]:
    """Return two lines a position: the student's top tokens and the teacher's."""
    lines = [f"--- {state.name} " + "-" * max(0, _WIDTH - len(state.name) - 5)]
    for index, step in enumerate(state.steps):
        head = f"{index:>2} {step.token:<10}"
        lines += [
            f"{head} student {_cells(step.student)}".rstrip(),
            f"{'':<{len(head)}} teacher {_cells(step.teacher)}".rstrip(),
        ]
    return lines


def _cells(ranked: RankedTokens) -> str:
    return "".join(f"{f'{token} {p:.3f}':<{_CELL}}" for token, p in ranked)


__all__ = ["as_written"]
