"""The run's data, read before anything starts: training prompts and held-out problems."""

from pathlib import Path

import numpy as np

from topd_ray.config import EvaluationConfig, PromptsConfig
from topd_ray.errors import UserError
from topd_ray.messages import Prompt
from topd_ray.prompts import DroppedPrompt, PromptSource, read_records, tokenize_records


def load_source(
    config: PromptsConfig, student: Path, *, seed: int, cursor: int
) -> tuple[PromptSource, list[DroppedPrompt]]:
    """Training prompts from `cursor` on, and those that were dropped with the reason."""
    kept, dropped = tokenize_records(
        read_records(Path(config.path)), folder=student, max_tokens=config.max_tokens
    )
    return PromptSource(kept, seed=seed, cursor=cursor), dropped


def load_problems(config: EvaluationConfig, student: Path, *, max_tokens: int) -> list[Prompt]:
    """The first `num_problems` held-out problems, in file order; none where no path is set."""
    if config.path is None:
        return []
    records = read_records(Path(config.path))[: config.num_problems]
    without = [record.prompt_id for record in records if record.answer is None]
    if without:
        raise UserError(
            f"{config.path}: {len(without)} problems have no `answer` to compare with, "
            f"e.g. {without[0]!r}"
        )
    kept, dropped = tokenize_records(records, folder=student, max_tokens=max_tokens)
    if dropped:
        raise UserError(
            f"{config.path}: problem {dropped[0].prompt_id!r} cannot be asked: {dropped[0].detail}"
        )
    return [
        Prompt(
            prompt_id=one.prompt_id,
            position=place,
            token_ids_P=np.asarray(one.token_ids_P),
            answer=one.answer,
        )
        for place, one in enumerate(kept)
    ]
