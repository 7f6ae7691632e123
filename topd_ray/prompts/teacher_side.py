"""What the teacher reads where its context is plain: the student's prompt, or its own.

Two chat templates may differ in branches that no prompt takes (tools, several system
turns). So they are compared by the ids that the prompts of this run get.
"""

from dataclasses import replace

import numpy as np

from topd_ray.contexts import ChatTemplate
from topd_ray.errors import UserError
from topd_ray.messages import Prompt
from topd_ray.prompts.turns import Turn

SHOWN_TOKENS = 6
"""Tokens that are shown on each side of the first one that differs."""


class TeacherSide:
    """Gives each prompt the ids that its teacher reads, or finds them to be equal."""

    def __init__(
        self,
        student: ChatTemplate,
        teacher: ChatTemplate,
        *,
        must_be_same: bool,
        max_tokens: int,
    ) -> None:
        """Take both templates, and the longest prompt of the teacher in tokens.

        `must_be_same` refuses a prompt that the two make other ids of.
        """
        self._student = student
        self._teacher = teacher
        self._must_be_same = must_be_same
        self.max_tokens = max_tokens

    def read(self, prompt: Prompt, turns: tuple[Turn, ...]) -> Prompt:
        """Return the prompt with `teacher_ids_P`, where they are not the student's.

        Raises UserError where the ids differ and must be the same.
        """
        ids_S = prompt.token_ids_P.tolist()
        ids_T = self._teacher.ids(turns, prompt_id=prompt.prompt_id)
        if self._must_be_same and ids_T != ids_S:
            raise UserError(self._difference(prompt.prompt_id, ids_S, ids_T))
        if ids_T == ids_S:
            return prompt
        return replace(prompt, teacher_ids_P=np.array(ids_T, dtype=np.int32))

    def _difference(self, prompt_id: str, ids_S: list[int], ids_T: list[int]) -> str:
        place = _first_difference(ids_S, ids_T)
        around = slice(max(0, place - SHOWN_TOKENS), place + SHOWN_TOKENS)
        text_S = self._student.tokenizer.decode(ids_S[around])
        text_T = self._teacher.tokenizer.decode(ids_T[around])
        return (
            f"prompt {prompt_id!r}: student {self._student.folder} and teacher"
            f" {self._teacher.folder} make other tokens of it, from token {place} on:"
            f" {text_S!r} for the student, {text_T!r} for the teacher; set"
            " teacher.template=own (the teacher reads its own template's prompt) or"
            " student (it reads the student's)"
        )


def _first_difference(first: list[int], second: list[int]) -> int:
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


__all__ = ["TeacherSide"]
