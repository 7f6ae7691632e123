"""The response that came with a record -> token ids."""

from pathlib import Path

import numpy as np

from topd_ray.contexts import load_tokenizer
from topd_ray.errors import UserError
from topd_ray.messages import Ints
from topd_ray.models.folder import read_facts
from topd_ray.prompts.record import PromptRecord


class GivenResponses:
    """Reads given responses as those of the student in `folder`: ids as they are, text
    once.

    Each is whole: the rollout stage cuts it where decoding would stop, and says so.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = load_tokenizer(folder)
        self._vocab_size = read_facts(folder).vocab_size

    def token_ids(self, record: PromptRecord) -> Ints | None:
        """At least one id; None where the record has no response. Raises UserError."""
        ids = record.response_ids
        if ids is None and record.response is not None:
            ids = self._of_text(record.response)
        if ids is None:
            return None
        if max(ids) >= self._vocab_size:
            raise UserError(
                f"prompt {record.prompt_id!r}: response_ids holds {max(ids)}, but the"
                f" vocabulary of {self._folder} ends at {self._vocab_size - 1}; the"
                " responses are another model's: generate them again, or leave out"
                " response_ids and keep `response`"
            )
        return np.array(ids, dtype=np.int32)

    def _of_text(self, text: str) -> tuple[int, ...]:
        """The text's tokens and EOS, with which a response says that it is whole."""
        end = self._tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"{self._folder}: its tokenizer has no eos_token, so a response given"
                " as text could never end; add one to tokenizer_config.json"
            )
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return (*ids, end) if ids[-1:] != [end] else tuple(ids)


__all__ = ["GivenResponses"]
