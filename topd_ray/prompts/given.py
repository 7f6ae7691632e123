"""The response that came with a record -> token ids, and whether it is whole."""

import re
from dataclasses import dataclass

import numpy as np

from topd_ray.contexts import ChatTemplate
from topd_ray.errors import UserError
from topd_ray.messages import FinishReason, Ints
from topd_ray.models.stop_ids import stop_tokens
from topd_ray.models.vocabulary import num_ids
from topd_ray.prompts.record import PromptRecord
from topd_ray.prompts.shown import shown

# <think> of Qwen and DeepSeek, [THINK] of Mistral, and names built like them.
_THINKS = re.compile(r"\s*(<\w*:?think\w*>|\[THINK\])")
_BEGINNING = 16
"""Tokens of given ids that are read to see whether they begin to think."""


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
    """Reads given responses as those of the student whose template is `chat`.

    `max_tokens` is where decoding would stop: a longer response is cut there.
    """

    def __init__(self, chat: ChatTemplate, *, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._chat = chat
        self._vocab_size = num_ids(chat.folder)
        ends = stop_tokens(chat.folder)
        self._end_id = ends[0].token_id
        self._end_ids = frozenset(end.token_id for end in ends)
        self._end_texts = tuple(end.token for end in ends)

    def read(self, record: PromptRecord) -> GivenResponse | None:
        """Return the record's response, or None where it has none.

        A response is whole where its row says finish_reason "stop", where it is text
        and its row says nothing, or where its ids end with EOS. Any other response is
        truncated: its finish reason is "length", and no EOS is added. A think block
        that the prompt has opened already is not opened again. Raises UserError for ids
        outside the student's vocabulary, and for a think block behind a prompt that has
        closed one.
        """
        ids = self._token_ids(record)
        if ids is None:
            return None
        is_whole = self._is_whole(record)
        if is_whole and (not ids or ids[-1] not in self._end_ids):
            ids = (*ids, self._end_id)
        if not ids:
            return None
        limit = self.max_tokens
        return GivenResponse(
            token_ids_N=np.array(ids[:limit], dtype=np.int32),
            finish_reason="stop" if is_whole and len(ids) <= limit else "length",
            num_whole=len(ids),
        )

    def body(self, text: str) -> str:
        """Return a response's text without the token that ends it, where it has one."""
        text = text.rstrip()
        for end in self._end_texts:
            if text.endswith(end):
                return text.removesuffix(end)
        return text

    def _is_whole(self, record: PromptRecord) -> bool:
        if record.finish_reason is not None:
            return record.finish_reason == "stop"
        if record.response_ids is None:
            return True
        # Ids come from a decoder, which would have written EOS had the response ended.
        return record.response_ids[-1] in self._end_ids

    def _token_ids(self, record: PromptRecord) -> tuple[int, ...] | None:
        ids = record.response_ids
        if ids is None:
            return None if record.response is None else self._tokenized(record)
        # Such an id would index past the embedding, on a GPU without a readable error.
        if max(ids) >= self._vocab_size:
            raise UserError(
                f"prompt {record.prompt_id!r}: response_ids holds {max(ids)}, but the"
                f" vocabulary of {self._chat.folder} ends at {self._vocab_size - 1};"
                " the responses are another model's: generate them again, or leave out"
                " response_ids and keep `response`"
            )
        beginning = self._chat.tokenizer.decode(list(ids[:_BEGINNING]))
        if self._without_opened_block(record, beginning) != beginning:
            raise UserError(
                f"prompt {record.prompt_id!r}: its response_ids begin with a think"
                f" block ({shown(beginning)}) that the prompt has opened already; take"
                " the first tokens away, or leave out response_ids and keep `response`"
            )
        return ids

    def _tokenized(self, record: PromptRecord) -> tuple[int, ...]:
        text = self._without_opened_block(record, record.response or "")
        encoded = self._chat.tokenizer(text, add_special_tokens=False, verbose=False)
        return tuple(encoded["input_ids"])

    def _without_opened_block(self, record: PromptRecord, response: str) -> str:
        """Return the response behind the tag that the prompt ends with.

        Raises UserError where the prompt has opened and closed such a block.
        """
        found = _THINKS.match(response)
        if found is None:
            return response
        tag = found[1]
        opened = self._opened(record)
        if tag not in opened:
            return response
        tail = opened[opened.rindex(tag) :]
        if tail.strip() == tag:
            # The line break behind the tag is the prompt's too, where it has one.
            return response[found.end() :].removeprefix(tail.removeprefix(tag))
        raise UserError(
            f"prompt {record.prompt_id!r}: its response begins with {tag}, and the"
            f" prompt ends with a block of that kind already ({shown(tail)}), so the"
            " student would be trained on two; set"
            " prompts.chat_template_kwargs={enable_thinking: true}, or take the block"
            " out of the responses"
        )

    def _opened(self, record: PromptRecord) -> str:
        """Return what the template writes to begin the assistant's turn."""
        turns = record.turns
        name = record.prompt_id
        before = self._chat.text(turns, prompt_id=name, opens_turn=False)
        return self._chat.text(turns, prompt_id=name).removeprefix(before)


__all__ = ["GivenResponse", "ResponseReader"]
