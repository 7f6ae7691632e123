"""dataset -> Prompt."""

from topd_ray.prompts.read import PromptRecord, Turn, read_records
from topd_ray.prompts.source import PromptSource
from topd_ray.prompts.tokenize import DroppedPrompt, TokenizedPrompt, tokenize_records

__all__ = [
    "DroppedPrompt",
    "PromptRecord",
    "PromptSource",
    "TokenizedPrompt",
    "Turn",
    "read_records",
    "tokenize_records",
]
