"""Functions that the task files refer to: rows to problems, responses to verdicts.

A problem is a row `{prompt_id, messages: [{role, content}], answer}` for every source.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from topd_ray.errors import UserError
from topd_ray.evaluation.answers import extract_boxed, same_answer

Problem = dict[str, Any]
TEXT_COLUMNS = ("problem", "question")
ID_COLUMNS = ("prompt_id", "id", "problem_idx")


class ProblemTask(ConfigurableTask):  # type: ignore[misc]  # the harness has no types
    """A harness task whose documents are whole conversations, not one text."""

    def __init__(self, config: dict[str, Any]) -> None:
        # The harness passes the key `class` on, and its own task config has no such
        # field.
        super().__init__(config={key: config[key] for key in config if key != "class"})

    def fewshot_context(
        self,
        doc: Problem,
        num_fewshot: int,
        *,
        chat_template: Callable[[list[dict[str, str]]], str],
        **_others: Any,
    ) -> str:
        """Return the turns under the chat template.

        The task's instruction is added to the last turn, unless that turn asks for a
        box already. Examples (shots) and a description are not supported.
        """
        assert num_fewshot == 0, "these tasks have no examples to show"
        turns = [dict(turn) for turn in doc["messages"]]
        instruction = self.config.metadata.get("instruction")
        if instruction and r"\boxed" not in turns[-1]["content"]:
            turns[-1]["content"] += f"\n\n{instruction}"
        return chat_template(turns)


def as_problem(row: object, *, default_id: str, where: str) -> Problem:
    """Return a benchmark's row as a problem.

    The row has `problem` or `question`, and `answer`, in upper or lower case. Raises
    UserError that names the row (`where`) and what it lacks.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected an object with columns, found {row!r:.80}")
    # Benchmarks spell their columns in both cases.
    columns = {
        str(key).lower(): value for key, value in row.items() if value is not None
    }
    text = next((columns[name] for name in TEXT_COLUMNS if name in columns), None)
    if not isinstance(text, str) or not text.strip() or "answer" not in columns:
        raise UserError(
            f"{where}: expected the columns `problem` (text) and `answer`, found"
            f" {sorted(row)}; or give rows in the prompt format (`messages` or"
            " `prompt`, and `answer`)"
        )
    return {
        "prompt_id": str(
            next((columns[n] for n in ID_COLUMNS if n in columns), default_id)
        ),
        "messages": [{"role": "user", "content": text}],
        "answer": _answer_text(columns["answer"]),
    }


def as_problems(rows: Dataset) -> Dataset:
    """Return a whole benchmark as problems; rows that are problems stay as they are."""
    if "messages" in rows.column_names:
        return rows
    return Dataset.from_list(
        [
            as_problem(row, default_id=str(number), where=f"row {number}")
            for number, row in enumerate(rows)
        ]
    )


def _answer_text(value: object) -> str:
    """Return a number as a person writes it: 33, not 33.0."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def question(doc: Problem) -> str:
    """Return the text of the last turn, for the harness's log."""
    return str(doc["messages"][-1]["content"])


def answer(doc: Problem) -> str:
    """Return the right answer."""
    return str(doc["answer"])


def grade(doc: Problem, results: Sequence[Sequence[str]]) -> dict[str, list[bool]]:
    r"""Return whether each response's last \boxed{...} is the problem's answer."""
    (responses,) = results
    predicted = [extract_boxed(response) for response in responses]
    # A comparison may take seconds in sympy, and samples often agree.
    verdicts = {text: same_answer(text, answer(doc)) for text in set(predicted)}
    return {"correct": [verdicts[text] for text in predicted]}


def mean_share(correct: Sequence[Sequence[bool]]) -> float:
    """Return Avg@k: each problem's share of right responses, averaged over problems."""
    shares = [sum(verdicts) / len(verdicts) for verdicts in correct]
    return sum(shares) / len(shares)


__all__ = [
    "ProblemTask",
    "answer",
    "as_problem",
    "as_problems",
    "grade",
    "mean_share",
    "question",
]
