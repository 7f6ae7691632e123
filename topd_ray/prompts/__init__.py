"""dataset -> Prompt."""

from topd_ray.prompts.given import ResponseReader
from topd_ray.prompts.read import read_records, read_rows
from topd_ray.prompts.record import PromptRecord
from topd_ray.prompts.source import PromptSource
from topd_ray.prompts.teacher_side import TeacherSide
from topd_ray.prompts.tokenize import DroppedPrompt, count_dropped, tokenize_records
from topd_ray.prompts.turns import Turn

__all__ = [
    "DroppedPrompt",
    "PromptRecord",
    "PromptSource",
    "ResponseReader",
    "TeacherSide",
    "Turn",
    "count_dropped",
    "read_records",
    "read_rows",
    "tokenize_records",
]
