"""Turn a conversation into token ids with a model folder's tokenizer and template."""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from topd_ray.config import Config
from topd_ray.errors import UserError

Turns = Iterable[tuple[str, str]]
"""(role, text), in order."""
THINKING_OFF = {"enable_thinking": False}
"""What a template is told unless the config says otherwise, as in the paper."""
# The filter and the function of jinja2 that draw at random.
_RANDOM = re.compile(r"\|\s*random\b|\blipsum\b")


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer.

    Raises UserError where the folder has no usable tokenizer or no chat template.
    """
    from transformers import AutoTokenizer

    try:
        # Code that comes with a model is never run.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: no usable tokenizer: {first_line}") from None
    if not tokenizer.chat_template:
        raise UserError(
            f"{folder}: its tokenizer has no chat template; start from a chat model or"
            " add chat_template.jinja"
        )
    return tokenizer


class ChatTemplate:
    """A model's tokenizer, its chat template, and the variables the template is given.

    A prompt depends on them and on its turns alone, so that a resumed run and another
    machine read the same prompts: a template may neither read the clock nor draw.
    """

    def __init__(
        self,
        folder: Path,
        *,
        variables: Mapping[str, Any] | None = None,
        today: date | None = None,
    ) -> None:
        """Load the tokenizer in `folder`.

        Args:
            folder: The model's folder.
            variables: Handed to the template, beside `enable_thinking: false`.
            today: The date where a template asks for one; None refuses such a template.

        Raises:
            UserError: The folder has no usable tokenizer, no chat template, or one that
                draws at random.
        """
        self.folder = folder
        self.tokenizer = load_tokenizer(folder)
        self.variables = THINKING_OFF | dict(variables or {})
        self._clock = _clock(folder, today)
        self._control = _control_pattern(self.tokenizer)
        if _RANDOM.search(str(self.tokenizer.chat_template)):
            raise UserError(
                f"{folder}: its chat template draws at random (`random` or `lipsum`),"
                " so no prompt would be the same twice; take that out of it"
            )

    def ids(self, turns: Turns, *, prompt_id: str) -> list[int]:
        """Return the ids of the turns, up to where the assistant's next turn begins.

        Raises UserError where the template refuses the turns, or asks for a date that
        is not set; `prompt_id` names them in the error.
        """
        ids: list[int] = self._apply(turns, prompt_id=prompt_id, tokenize=True)
        return ids

    def text(
        self,
        turns: Turns,
        *,
        prompt_id: str,
        opens_turn: bool = True,
        continues: bool = False,
    ) -> str:
        """Return the text of `ids`; without the opened turn of the assistant if said.

        With `continues` the last turn is left open, to be gone on with. Raises
        UserError as `ids` does.
        """
        text: str = self._apply(
            turns,
            prompt_id=prompt_id,
            tokenize=False,
            opens_turn=opens_turn,
            continues=continues,
        )
        return text

    def control_token(self, text: str) -> str | None:
        """Return the first control token that a text of the data would become.

        The template's text is tokenised as a whole, so `<|im_end|>` in a question would
        end the user's turn. None where there is none.
        """
        found = self._control.search(text)
        return None if found is None else found[0]

    def without_control_tokens(self, text: str) -> str:
        """Return a text without what would become control tokens."""
        return self._control.sub("", text)

    def _apply(
        self,
        turns: Turns,
        *,
        prompt_id: str,
        tokenize: bool,
        opens_turn: bool = True,
        continues: bool = False,
    ) -> Any:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                [{"role": role, "content": text} for role, text in turns],
                tokenize=tokenize,
                # The default of transformers 5 is a mapping, not the ids.
                return_dict=False,
                add_generation_prompt=opens_turn,
                continue_final_message=continues,
                # A variable hides the function of that name, which reads the clock.
                strftime_now=self._clock,
                **self.variables,
            )
        except TemplateError as error:
            raise UserError(
                f"prompt {prompt_id!r}: the chat template of {self.folder} refuses it:"
                f" {error}"
            ) from None


def student_chat(config: Config, student: Path) -> ChatTemplate:
    """Return the template of the student's prompts. Raises UserError."""
    return ChatTemplate(
        student,
        variables=config.prompts.chat_template_kwargs,
        today=config.prompts.today,
    )


def teacher_chat(config: Config, *, student: Path, teacher: Path) -> ChatTemplate:
    """Return the template of the prompts that the teacher reads. Raises UserError."""
    folder = student if config.teacher.template == "student" else teacher
    variables = config.teacher.chat_template_kwargs
    if variables is None:
        variables = config.prompts.chat_template_kwargs
    return ChatTemplate(folder, variables=variables, today=config.prompts.today)


def _control_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Return what matches the tokenizer's special tokens, and nothing else."""
    added = tokenizer.added_tokens_decoder.values()
    tokens = {str(token) for token in added if token.special}
    tokens |= set(tokenizer.all_special_tokens)
    # The longest first: one token may begin like another.
    ordered = sorted(tokens, key=len, reverse=True)
    # `(?!)` matches nothing, as an empty pattern would everywhere.
    return re.compile("|".join(map(re.escape, ordered)) or "(?!)")


def _clock(folder: Path, today: date | None) -> Callable[[str], str]:
    """Return the function that a template calls for the date."""
    if today is not None:
        return today.strftime

    def refuse(form: str) -> str:
        raise UserError(
            f"{folder}: its chat template writes the date of the day into each prompt"
            f" (strftime_now({form!r})), so a run that is resumed tomorrow would read"
            " other prompts; set prompts.today to a date such as 2024-07-26, or the"
            " template's own variable for it in chat_template_kwargs"
        )

    return refuse


__all__ = [
    "ChatTemplate",
    "Turns",
    "load_tokenizer",
    "student_chat",
    "teacher_chat",
]
