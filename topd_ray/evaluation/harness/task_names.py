"""Task names and sampling of `topd eval`; does not import the harness."""

from dataclasses import dataclass
from difflib import get_close_matches

from topd_ray.errors import UserError

CONTESTS = ("aime24", "aime25", "hmmt25_feb")
"""Contests; where more than one is evaluated, their average is reported too."""
CODE = ("humaneval_plus", "mbpp_plus")
"""Stock tasks of the harness that run the programs which the model wrote."""
PROMPT_FILES = ("problems", "toy")
"""Tasks whose problems are in our prompt format."""
NAMES = (*CONTESTS, *PROMPT_FILES, *CODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSampling:
    """How the responses of a task are drawn; None leaves a field to the task's file.

    Example: `TaskSampling(samples=16, temperature=0.6)` draws 16 responses a problem.
    """

    samples: int | None = None
    """Responses to each problem."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    max_tokens: int | None = None
    """Longest response, in tokens."""
    seed: int = 0


def check_request(
    tasks: tuple[str, ...], sampling: TaskSampling, *, unsafe_code: bool
) -> None:
    """Raise UserError for a request that cannot be evaluated or should not be.

    That is an unknown or repeated task, several samples of greedy decoding, or a task
    that runs programs without the user's consent (`unsafe_code`).
    """
    for name in tasks:
        if name not in NAMES:
            close = get_close_matches(name, NAMES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"--task {name}: expected one of {', '.join(NAMES)}{hint}")
    if len(set(tasks)) < len(tasks):
        raise UserError(f"--task {' --task '.join(tasks)}: name each task once")
    # They would pass for independent samples, with k times the cost.
    if sampling.temperature == 0 and (sampling.samples or 1) > 1:
        raise UserError(
            f"--samples {sampling.samples} with --temperature 0: greedy answers are all"
            " the same; ask for one, or give a temperature above 0"
        )
    code = [name for name in tasks if name in CODE]
    if code and not unsafe_code:
        raise UserError(
            f"--task {code[0]}: it runs programs that the model wrote, on this machine"
            " and without a sandbox; add --confirm-run-unsafe-code if that is what you"
            " want"
        )


__all__ = ["CODE", "CONTESTS", "NAMES", "PROMPT_FILES", "TaskSampling", "check_request"]
