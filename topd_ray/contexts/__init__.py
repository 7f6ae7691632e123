"""Write the prompt that a teacher reads: its form, the chat template, the budget."""

from topd_ray.contexts.build import DoesNotFitError, TeacherPrompts
from topd_ray.contexts.chat import Turns, chat_ids, load_tokenizer
from topd_ray.contexts.prompt_forms import Forms, load_forms, render

__all__ = [
    "DoesNotFitError",
    "Forms",
    "TeacherPrompts",
    "Turns",
    "chat_ids",
    "load_forms",
    "load_tokenizer",
    "render",
]
