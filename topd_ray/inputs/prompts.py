"""Read a run's data before any actor starts: prompts and held-out problems."""

from pathlib import Path

from topd_ray.config import Config, EvaluationConfig
from topd_ray.contexts import TeacherPrompts, load_forms
from topd_ray.errors import UserError
from topd_ray.messages import Prompt
from topd_ray.prompts import (
    DroppedPrompt,
    PromptSource,
    ResponseReader,
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
    responses = None
    if config.objective.trajectory == "given":
        limit = config.rollout.max_response_tokens
        responses = ResponseReader(student, max_tokens=limit)
    kept, dropped = tokenize_records(
        read_records(Path(config.prompts.path)),
        folder=student,
        max_tokens=config.prompts.max_tokens,
        responses=responses,
        truncated=config.prompts.truncated,
        teacher=_teacher_prompts(config, teacher),
    )
    return PromptSource(kept, seed=config.run.seed), dropped


def _teacher_prompts(config: Config, teacher: Path) -> TeacherPrompts | None:
    """Return the writer of the teacher's prompts; None where it reads the student's."""
    if config.objective.context == "plain":
        return None
    return TeacherPrompts(
        config.objective.context,
        load_forms(config.prompts.forms),
        teacher,
        max_tokens=config.teacher_prompt_tokens,
        max_reference_tokens=config.prompts.max_reference_tokens,
    )


def load_problems(
    config: EvaluationConfig, student: Path, *, max_tokens: int
) -> list[Prompt]:
    """Return the first `num_problems` held-out problems, in file order.

    Returns none where evaluation.path is not set. Raises UserError for a problem
    without an answer, or with more than `max_tokens` tokens.
    """
    if config.path is None:
        return []
    records = read_records(Path(config.path))[: config.num_problems]
    # A problem without an answer would count as wrong.
    without = [record.prompt_id for record in records if record.answer is None]
    if without:
        raise UserError(
            f"{config.path}: {len(without)} problems have no `answer` to compare with, "
            f"e.g. {without[0]!r}"
        )
    kept, dropped = tokenize_records(records, folder=student, max_tokens=max_tokens)
    # Refused, not dropped: accuracies of two runs are compared on the same problems.
    if dropped:
        raise UserError(
            f"{config.path}: problem {dropped[0].prompt_id!r} cannot be posed:"
            f" {dropped[0].detail}"
        )
    return kept
