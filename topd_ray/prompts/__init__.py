"""dataset -> Prompt."""

from topd_ray.prompts.given import ResponseReader
from topd_ray.prompts.read import read_records, read_rows
from topd_ray.prompts.record import PromptRecord, Turn
from topd_ray.prompts.source import PromptSource
from topd_ray.prompts.tokenize import DroppedPrompt, tokenize_records

__all__ = [
    "DroppedPrompt",
    "PromptRecord",
    "PromptSource",
    "ResponseReader",
    "Turn",
    "read_records",
    "read_rows",
    "tokenize_records",
]
