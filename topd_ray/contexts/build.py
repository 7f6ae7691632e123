"""Build a teacher's prompt from problem, reference and attempt, within a budget."""

from collections.abc import Callable

import numpy as np

from topd_ray.config import Context
from topd_ray.contexts.chat import ChatTemplate
from topd_ray.contexts.prompt_forms import GAPS, Forms, render
from topd_ray.errors import UserError
from topd_ray.messages import Ints, Prompt


class DoesNotFitError(UserError):
    """A teacher's prompt exceeds its budget even without reference and attempt."""


class TeacherPrompts:
    """Writes the prompts of a teacher that sees more than the student's prompt.

    Prompts are token ids of the template that the teacher reads (`teacher.template`).
    """

    def __init__(
        self,
        context: Context,
        forms: Forms,
        chat: ChatTemplate,
        *,
        max_tokens: int,
        max_reference_tokens: int,
    ) -> None:
        """Write prompts under the template `chat`; `context` is not plain.

        `max_tokens` is the longest prompt, chat template included.
        `max_reference_tokens` is the longest reference solution inside it.
        """
        self.context = context
        self.needs_reference = "reference" in GAPS[context]
        self.needs_attempt = "attempt" in GAPS[context]
        # The fields of Forms have the names of the contexts.
        self._form: str = getattr(forms, context)
        self._max_tokens = max_tokens
        self._max_reference_tokens = max_reference_tokens
        self._chat = chat
        self._tokenizer = chat.tokenizer

    def build(self, prompt: Prompt, *, attempt: str = "") -> Ints:
        """Return the token ids of the teacher's prompt.

        The prompt holds the earlier turns and then the filled form as the user's last
        turn. Where it exceeds the budget, the tail of the attempt is cut first, all of
        it if need be, and then the tail of the reference. Raises DoesNotFitError where
        that is not enough.
        """
        texts = {
            "problem": prompt.problem,
            "reference": self._first_tokens(
                prompt.reference or "", self._max_reference_tokens
            ),
            "attempt": attempt,
        }

        def write() -> list[int]:
            turns = (*prompt.earlier_turns, ("user", render(self._form, **texts)))
            return self._chat.ids(turns, prompt_id=prompt.prompt_id)

        ids = write()
        for name in ("attempt", "reference"):
            ids = self._cut(texts, name, ids, write)
        if len(ids) > self._max_tokens:
            raise DoesNotFitError(
                f"prompt {prompt.prompt_id!r}: the teacher's prompt has {len(ids)}"
                " tokens with nothing of reference and attempt left in it, and may"
                f" have {self._max_tokens}; raise prompts.max_tokens, or shorten the"
                " form"
            )
        return np.array(ids, dtype=np.int32)

    def decode(self, response_ids_N: Ints) -> str:
        """Return the text of a response, as it goes into a form.

        Control tokens are left out, and so is their spelling in other tokens: it would
        end the turn that shows the attempt.
        """
        text: str = self._tokenizer.decode(
            response_ids_N.tolist(), skip_special_tokens=True
        )
        return self._chat.without_control_tokens(text)

    def _cut(
        self,
        texts: dict[str, str],
        name: str,
        ids: list[int],
        write: Callable[[], list[int]],
    ) -> list[int]:
        """Shorten `texts[name]` until the prompt fits or the text is empty.

        `ids` is the prompt before; returns the ids of the prompt after.
        """
        if len(ids) <= self._max_tokens:
            return ids
        text = texts[name]
        starts = self._token_starts(text)
        keep = len(starts)
        # Tokens may merge across a cut, so the first guess may be a token or two too
        # long.
        while keep > 0 and len(ids) > self._max_tokens:
            keep = max(0, keep - (len(ids) - self._max_tokens))
            texts[name] = text[: starts[keep]]
            ids = write()
        return ids

    def _first_tokens(self, text: str, count: int) -> str:
        starts = self._token_starts(text)
        return text[: starts[count]] if len(starts) > count else text

    def _token_starts(self, text: str) -> list[int]:
        """Return where each token of the text begins, in characters.

        Tokens that are parts of one character begin where the character does, so a cut
        never splits a character.
        """
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return [start for start, _ in encoded["offset_mapping"]]


__all__ = ["DoesNotFitError", "TeacherPrompts"]
