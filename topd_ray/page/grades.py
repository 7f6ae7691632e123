"""Right or wrong: responses graded against the answers of the run's prompt file."""

import time
from collections.abc import Mapping
from pathlib import Path

from topd_ray.errors import TopdError, first_line
from topd_ray.evaluation.answers import extract_boxed, same_answer
from topd_ray.prompts import read_records
from topd_ray.records.open_run import Run

WRONG, RIGHT, UNKNOWN = 0, 1, 2
DEADLINE_S = 20.0
"""Longest time that one page spends on comparing answers. A hard pair takes math-verify
seconds; what is not compared by then is of unknown correctness, and the page says so.
"""
LARGEST_FILE_BYTES = 300_000_000
"""A larger prompt file would take longer to read than the rest of the page."""


class Grades:
    """Grades responses of one run; equal pairs of answers are compared once."""

    def __init__(self, answers: Mapping[str, str | None]) -> None:
        self._answers = answers
        self._known: dict[tuple[str, str], bool] = {}
        self._left_s = DEADLINE_S
        self.num_ungraded = 0
        """Responses with an answer to compare with, for which there was no time."""

    def answer(self, prompt_id: str) -> str:
        """Return the answer of a prompt; "" where it has none."""
        return self._answers.get(prompt_id) or ""

    def grade(self, prompt_id: str, response: str) -> int:
        """Return RIGHT, WRONG or UNKNOWN."""
        truth = self._answers.get(prompt_id)
        if truth is None:
            return UNKNOWN
        said = extract_boxed(response)
        if said is None:
            return WRONG
        verdict = self._known.get((said, truth))
        if verdict is None:
            if self._left_s <= 0:
                self.num_ungraded += 1
                return UNKNOWN
            began_s = time.monotonic()
            try:
                verdict = same_answer(said, truth)
            except TopdError:  # math-verify's process does not start here
                self._left_s = 0.0
                self.num_ungraded += 1
                return UNKNOWN
            self._left_s -= time.monotonic() - began_s
            self._known[said, truth] = verdict
        return RIGHT if verdict else WRONG


def read_grades(run: Run) -> tuple[Grades, str | None]:
    """Return the grades of a run's responses, and why there are none, if so."""
    if run.config is None:
        return Grades({}), "Responses are not graded: config.yaml cannot be read."
    path = Path(run.config.prompts.path)
    if not path.exists():
        return Grades({}), (
            f"Responses are not graded: the prompt file {path} is not on this machine."
        )
    if path.is_file() and path.stat().st_size > LARGEST_FILE_BYTES:
        return Grades({}), (
            f"Responses are not graded: the prompt file {path} is larger than"
            f" {LARGEST_FILE_BYTES / 1e6:.0f} MB."
        )
    try:
        records = read_records(path, columns=run.config.prompts.columns)
    except TopdError as error:
        return Grades({}), f"Responses are not graded: {first_line(error)}"
    answers = {record.prompt_id: record.answer for record in records}
    if not any(answers.values()):
        return Grades({}), f"Responses are not graded: {path} holds no answers."
    return Grades(answers), None


__all__ = ["RIGHT", "UNKNOWN", "WRONG", "Grades", "read_grades"]
