"""The response that came with a record -> token ids, and whether it is whole."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from topd_ray.contexts import load_tokenizer
from topd_ray.errors import UserError
from topd_ray.messages import FinishReason, Ints
from topd_ray.models.facts import read_facts
from topd_ray.models.vocabulary import num_ids
from topd_ray.prompts.record import PromptRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenResponse:
    """A response of the data, as the student would have decoded it.

    Example: an answer that `topd generate` had to stop at its 40th token comes back as
    40 ids without EOS and `finish_reason="length"`.
    """

    token_ids_N: Ints
    """At least one id, at most `max_tokens`; EOS last when `finish_reason` is stop."""
    finish_reason: FinishReason
    num_whole: int
    """Tokens of the response before it was cut to `max_tokens`."""


class ResponseReader:
    """Reads given responses as those of the student in `folder`.

    `max_tokens` is where decoding would stop: a longer response is cut there.
    """

    def __init__(self, folder: Path, *, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._folder = folder
        self._tokenizer = load_tokenizer(folder)
        self._vocab_size = num_ids(folder)
        self._eos_ids = read_facts(folder).eos_ids

    def read(self, record: PromptRecord) -> GivenResponse | None:
        """Return the record's response, or None where it has none.

        A response is whole where its row says finish_reason "stop", where it is text
        and its row says nothing, or where its ids end with EOS. Any other response is
        truncated: its finish reason is "length", and no EOS is added. Raises UserError
        for ids outside the student's vocabulary.
        """
        ids = self._token_ids(record)
        if ids is None:
            return None
        is_whole = self._is_whole(record)
        if is_whole:
            ids = self._with_eos(ids)
        if not ids:
            return None
        limit = self.max_tokens
        return GivenResponse(
            token_ids_N=np.array(ids[:limit], dtype=np.int32),
            finish_reason="stop" if is_whole and len(ids) <= limit else "length",
            num_whole=len(ids),
        )

    def _is_whole(self, record: PromptRecord) -> bool:
        if record.finish_reason is not None:
            return record.finish_reason == "stop"
        if record.response_ids is None:
            return True
        # Ids come from a decoder, which would have written EOS had the response ended.
        return record.response_ids[-1] in self._eos_ids

    def _token_ids(self, record: PromptRecord) -> tuple[int, ...] | None:
        ids = record.response_ids
        if ids is None:
            return None if record.response is None else self._tokenized(record.response)
        # Such an id would index past the embedding, on a GPU without a readable error.
        if max(ids) >= self._vocab_size:
            raise UserError(
                f"prompt {record.prompt_id!r}: response_ids holds {max(ids)}, but the"
                f" vocabulary of {self._folder} ends at {self._vocab_size - 1}; the"
                " responses are another model's: generate them again, or leave out"
                " response_ids and keep `response`"
            )
        return ids

    def _tokenized(self, text: str) -> tuple[int, ...]:
        encoded = self._tokenizer(text, add_special_tokens=False, verbose=False)
        return tuple(encoded["input_ids"])

    def _with_eos(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        if ids[-1:] and ids[-1] in self._eos_ids:
            return ids
        end = self._tokenizer.eos_token_id
        if end is None:
            raise UserError(
                f"{self._folder}: its tokenizer has no eos_token, so a response given"
                " as text could never end; add one to tokenizer_config.json"
            )
        return (*ids, end)


__all__ = ["GivenResponse", "ResponseReader"]
