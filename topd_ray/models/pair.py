"""Student and teacher: whether their tokens are the same."""

from pathlib import Path

from topd_ray.errors import UserError
from topd_ray.models.facts import eos_ids
from topd_ray.models.files import read_json, read_text
from topd_ray.models.vocabulary import read_vocabulary

CONTEXT_CHARS = 20
"""Characters of a chat template shown on each side of a difference."""


def compare_models(student: Path, teacher: Path) -> None:
    """Raise UserError with the first thing in which two models' tokens differ.

    Distillation compares distributions id by id: the vocabulary, the EOS ids at which
    the engines stop, and the chat template must be the same. The embeddings may have
    different numbers of rows behind the last id.
    """
    for difference in (
        _vocabulary_difference(student, teacher),
        _eos_difference(student, teacher),
        _template_difference(student, teacher),
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
        f"EOS token ids: {eos_S} for the student, {eos_T} for the teacher"
        " (generation_config.json, else config.json); set `eos_token_id` alike in both"
        " generation_config.json"
    )


def _template_difference(student: Path, teacher: Path) -> str | None:
    text_S = _chat_template(student)
    text_T = _chat_template(teacher)
    if text_S is None or text_T is None:
        role = "student" if text_S is None else "teacher"
        return (
            f"chat template: the {role} has none (chat_template.jinja or"
            " tokenizer_config.json)"
        )
    if text_S == text_T:
        return None
    place = _first_difference(text_S, text_T)
    return (
        f"chat template: differs from character {place} on: student"
        f" {_around(text_S, place)!r}, teacher {_around(text_T, place)!r}; copy"
        " chat_template.jinja from one to the other"
    )


def _first_difference(first: str, second: str) -> int:
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [entry for entry in template if isinstance(entry, dict)]
        defaults = [entry for entry in named if entry.get("name") == "default"]
        template = defaults[0].get("template") if defaults else None
    return template if isinstance(template, str) else None


def _around(text: str, place: int) -> str:
    return text[max(0, place - CONTEXT_CHARS) : place + CONTEXT_CHARS]


def _named(token: str | None) -> str:
    return "missing" if token is None else repr(token)


__all__ = ["compare_models"]
