"""Everything that a run reads before its first actor starts."""

from dataclasses import dataclass
from pathlib import Path

from topd_ray.config import Config
from topd_ray.inputs.fingerprints import Fingerprints, take_fingerprints
from topd_ray.inputs.models import check_models, check_what_is_here
from topd_ray.inputs.prompts import load_problems, load_source
from topd_ray.messages import Prompt
from topd_ray.models.roles import find_student, find_teacher
from topd_ray.models.stop_ids import stop_tokens
from topd_ray.prompts import DroppedPrompt, PromptSource, count_dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """Training prompts and held-out problems of a run."""

    source: PromptSource
    dropped: list[DroppedPrompt]
    """Prompts that are not trained on, each with the reason."""
    problems: list[Prompt]
    """Held-out problems; none where the config names no file of them."""
    notes: list[str]
    """What the user should know of the models before the run begins."""
    fingerprints: Fingerprints
    """Of the files of data and models that the run has read."""


def check_inputs(config: Config) -> list[str]:
    """Judge what is on this machine as `load_inputs` does; download nothing.

    Returns notes: what is not here, the tokens that end a response, and how many
    prompts there are. Raises UserError.
    """
    notes = check_what_is_here(config)
    student = find_student(config)
    teacher = find_teacher(config)
    if student is None:
        return notes
    ends = "; ".join(map(str, stop_tokens(student)))
    notes.append(f"a response ends at {ends}")
    if teacher is not None and Path(config.prompts.path).exists():
        source, dropped = load_source(config, student=student, teacher=teacher)
        notes.append(f"{len(source):,} prompts ({count_dropped(dropped)})")
    if config.evaluation.path is not None and Path(config.evaluation.path).exists():
        load_problems(config, student)
    return notes


def load_inputs(config: Config) -> RunInputs:
    """Check models, read prompts and problems. Raises UserError."""
    # Models first: a folder that is not whole is named there, and would fail in the
    # tokenizer with an error that does not say so.
    student, teacher, notes = check_models(config)
    source, dropped = load_source(config, student=student, teacher=teacher)
    problems = load_problems(config, student)
    return RunInputs(
        source=source,
        dropped=dropped,
        problems=problems,
        notes=notes,
        fingerprints=take_fingerprints(config, student=student, teacher=teacher),
    )
