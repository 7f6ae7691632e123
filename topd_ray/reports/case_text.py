"""A fork as text: all continuations side by side, then every position's likeliest
tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topd_ray.studies.case import Case, Ranked, State

_WIDTH = 100
_CELL = 17


def as_written(case: "Case") -> str:
    """Prompt, prefix, continuations as aligned rows, then a block a state."""
    parts = [
        f"prompt   {case.prompt}",
        f"prefix   {case.prefix}",
        "",
        *_aligned(
            [
                ("teacher", case.teacher),
                ("rollout", case.own),
                *(
                    (state.name, [step.token for step in state.steps])
                    for state in case.states
                ),
            ]
        ),
    ]
    for state in case.states:
        parts += ["", *_block(state)]
    return "\n".join(parts)


def _aligned(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """One column a position, wide enough for its longest token."""
    longest = max(len(tokens) for _, tokens in rows)
    widths = [
        max(len(tokens[place]) for _, tokens in rows if place < len(tokens))
        for place in range(longest)
    ]
    names = max(len(name) for name, _ in rows)
    return [
        f"{name:<{names}}  "
        + " ".join(
            f"{token:<{width}}" for token, width in zip(tokens, widths, strict=False)
        )
        for name, tokens in rows
    ]


def _block(state: "State") -> list[str]:
    """Every position: what was said, and both models' likeliest."""
    lines = [f"--- {state.name} " + "-" * max(0, _WIDTH - len(state.name) - 5)]
    for index, step in enumerate(state.steps):
        head = f"{index:>2} {step.token:<10}"
        lines += [
            f"{head} student {_cells(step.student)}".rstrip(),
            f"{'':<{len(head)}} teacher {_cells(step.teacher)}".rstrip(),
        ]
    return lines


def _cells(ranked: "Ranked") -> str:
    return "".join(f"{f'{token} {p:.3f}':<{_CELL}}" for token, p in ranked)


__all__ = ["as_written"]
