"""Write the prompt that a teacher reads: its form, the chat template, the budget."""

from topd_ray.contexts.build import DoesNotFitError, TeacherPrompts
from topd_ray.contexts.chat import (
    ChatTemplate,
    Turns,
    load_tokenizer,
    student_chat,
    teacher_chat,
)
from topd_ray.contexts.prompt_forms import Forms, load_forms, render

__all__ = [
    "ChatTemplate",
    "DoesNotFitError",
    "Forms",
    "TeacherPrompts",
    "Turns",
    "load_forms",
    "load_tokenizer",
    "render",
    "student_chat",
    "teacher_chat",
]
