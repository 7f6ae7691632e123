"""Student and teacher: whether their tokens are the same.

Chat templates are compared by what they render, where the prompts are read.
"""

from pathlib import Path

from topd_ray.errors import UserError
from topd_ray.models.stop_ids import eos_ids
from topd_ray.models.vocabulary import read_vocabulary


def compare_models(student: Path, teacher: Path) -> None:
    """Raise UserError with the first thing in which two models' tokens differ.

    Distillation compares distributions id by id: the vocabulary and the ids at which a
    response ends must be the same. The embeddings may have different numbers of rows
    behind the last id.
    """
    for difference in (
        _vocabulary_difference(student, teacher),
        _eos_difference(student, teacher),
    ):
        if difference is not None:
            raise UserError(
                f"student {student} and teacher {teacher} do not fit: {difference}"
            )


def _vocabulary_difference(student: Path, teacher: Path) -> str | None:
    token_S = read_vocabulary(student)
    token_T = read_vocabulary(teacher)
    for token_id in sorted(token_S.keys() | token_T.keys()):
        if token_S.get(token_id) != token_T.get(token_id):
            return (
                f"vocabulary: id {token_id} is {_named(token_S.get(token_id))} in the"
                f" student's tokenizer.json and {_named(token_T.get(token_id))} in the"
                f" teacher's ({len(token_S)} and {len(token_T)} entries); take models"
                " of one family"
            )
    return None


def _eos_difference(student: Path, teacher: Path) -> str | None:
    eos_S = list(eos_ids(student))
    eos_T = list(eos_ids(teacher))
    if eos_S == eos_T:
        return None
    return (
        f"a response ends at the ids {eos_S} of the student and {eos_T} of the teacher"
        " (chat template, eos_token, eos_token_id); list all of them as `eos_token_id`"
        " in both generation_config.json"
    )


def _named(token: str | None) -> str:
    return "missing" if token is None else repr(token)


__all__ = ["compare_models"]
