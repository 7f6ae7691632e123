"""Read a run's data before any actor starts: prompts and held-out problems."""

from pathlib import Path

from topd_ray.config import Config
from topd_ray.contexts import (
    ChatTemplate,
    TeacherPrompts,
    load_forms,
    student_chat,
    teacher_chat,
)
from topd_ray.errors import UserError
from topd_ray.messages import Prompt
from topd_ray.models.chat_template import TOKENIZER_CONFIG, chat_template
from topd_ray.models.vocabulary import TOKENIZER
from topd_ray.prompts import (
    DroppedPrompt,
    PromptSource,
    ResponseReader,
    TeacherSide,
    read_records,
    tokenize_records,
)


def load_source(
    config: Config, *, student: Path, teacher: Path
) -> tuple[PromptSource, list[DroppedPrompt]]:
    """Return the training prompts, and the dropped ones with the reason of each.

    `student` and `teacher` are model folders. Prompts carry what the objective needs:
    the given response, or the teacher's own prompt. Raises UserError where the data
    cannot be read or no prompt is left.
    """
    chat = student_chat(config, student)
    responses = None
    if config.objective.trajectory == "given":
        limit = config.rollout.max_response_tokens
        responses = ResponseReader(chat, max_tokens=limit)
    kept, dropped = tokenize_records(
        read_records(Path(config.prompts.path), columns=config.prompts.columns),
        chat=chat,
        max_tokens=config.prompts.max_tokens,
        responses=responses,
        truncated=config.prompts.truncated,
        teacher=_teacher_prompts(config, student, teacher),
        side=teacher_side(config, chat, teacher),
    )
    return PromptSource(kept, seed=config.run.seed), dropped


def _teacher_prompts(
    config: Config, student: Path, teacher: Path
) -> TeacherPrompts | None:
    """Return the writer of the teacher's prompts; None where it reads the student's."""
    if config.objective.context == "plain":
        return None
    return TeacherPrompts(
        config.objective.context,
        load_forms(config.prompts.forms),
        teacher_chat(config, student=student, teacher=teacher),
        max_tokens=config.teacher_prompt_tokens,
        max_reference_tokens=config.prompts.max_reference_tokens,
    )


def teacher_side(
    config: Config, student: ChatTemplate, teacher: Path
) -> TeacherSide | None:
    """Return what makes or compares the teacher's prompts; None where there is no need.

    Raises UserError where the teacher has no template and needs one.
    """
    template = config.teacher.template
    # Under another context the teacher's prompts are written by `TeacherPrompts`.
    is_own = template == "own"
    if template == "student" or (is_own and config.objective.context != "plain"):
        return None
    if chat_template(teacher) is None:
        raise UserError(
            f"teacher {teacher}: no chat template (chat_template.jinja or"
            " tokenizer_config.json); set teacher.template=student, so that it reads"
            " the student's prompts"
        )
    if not is_own and _is_same_tokenizer(student.folder, teacher):
        return None
    return TeacherSide(
        student,
        _own_chat(config, teacher),
        must_be_same=not is_own,
        max_tokens=config.teacher_prompt_tokens,
    )


def _own_chat(config: Config, teacher: Path) -> ChatTemplate:
    """Return the teacher's template, with the variables it is compared or used by."""
    if config.teacher.template == "own":
        return teacher_chat(config, student=teacher, teacher=teacher)
    return student_chat(config, teacher)


def _is_same_tokenizer(student: Path, teacher: Path) -> bool:
    """Return whether template and tokenizer are equal byte for byte.

    Most pairs are of one family, and need not tokenise every prompt twice.
    """
    if student == teacher:
        return True
    files = (TOKENIZER, TOKENIZER_CONFIG)
    return chat_template(student) == chat_template(teacher) and all(
        _bytes(student / name) == _bytes(teacher / name) for name in files
    )


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def load_problems(config: Config, student: Path) -> list[Prompt]:
    """Return the first `num_problems` held-out problems, in file order.

    Returns none where evaluation.path is not set. Raises UserError for a problem
    without an answer, or with more than `prompts.max_tokens` tokens.
    """
    held_out = config.evaluation
    if held_out.path is None:
        return []
    records = read_records(
        Path(held_out.path), columns=held_out.columns, field="evaluation.columns"
    )
    records = records[: held_out.num_problems]
    # A problem without an answer would count as wrong.
    without = [record.prompt_id for record in records if record.answer is None]
    if without:
        raise UserError(
            f"{held_out.path}: {len(without)} problems have no `answer` to compare"
            f" with, e.g. {without[0]!r}"
        )
    kept, dropped = tokenize_records(
        records,
        chat=student_chat(config, student),
        max_tokens=config.prompts.max_tokens,
    )
    # Refused, not dropped: accuracies of two runs are compared on the same problems.
    if dropped:
        raise UserError(
            f"{held_out.path}: problem {dropped[0].prompt_id!r} cannot be posed:"
            f" {dropped[0].detail}"
        )
    return kept
