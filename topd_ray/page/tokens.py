"""Token ids -> texts, by the tokenizer of the run's student."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topd_ray.config import Config
from topd_ray.errors import UserError
from topd_ray.models.roles import find_student
from topd_ray.records.open_run import Run
from topd_ray.reports.token_kinds import find_kinds

KINDS = {
    "digits": r"[0-9.,%$]*[0-9][0-9.,%$]*",
    "operators": (
        r"[-+*/=<>^\u00d7\u00f7\u00b1\u2264\u2265\u2260()\[\]{}]+|\\[a-z]+[{]?"
    ),
    "connectives": (
        r"(?i)so|then|hence|thus|therefore|consequently|accordingly|whence|next|now|"
        r"since|because|if|first|second|third|finally|and|or|but|however|also|to|we|"
        r"let|need|wait|is|are|gives|equals|makes|have|which"
    ),
    "punctuation": r"[^\w\s]+",
}
"""Regular expressions of the kinds of tokens; the first that matches a token counts."""
KIND_NAMES = (*KINDS, "other")
_ROLE_TOKENS = 5
"""An added token and a role, with the line behind it, have at most so many."""
LOST = "\ufffd"
"""What a decoder writes for part of a character."""


class TokenTexts:
    """Spells the tokens of one run, and says of which kind each is."""

    def __init__(self, tokenizer: Any | None) -> None:
        """Spell by a tokenizer of transformers; without one, a token is its number."""
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        self._kinds: dict[int, int] = {}

    @property
    def is_readable(self) -> bool:
        """Whether there is a tokenizer."""
        return self._tokenizer is not None

    def texts(self, ids: NDArray[Any]) -> list[str]:
        """Return the text of each token as it stands inside a sentence.

        Part of a character is written as its bytes: \\xF0.
        """
        unknown = [
            int(token) for token in np.unique(ids) if int(token) not in self._texts
        ]
        if unknown:
            self._texts.update(zip(unknown, self._spell(unknown), strict=True))
        return [self._texts[int(token)] for token in ids]

    def kinds(self, ids: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the index into `KIND_NAMES` of each token."""
        unknown = np.array(
            [token for token in np.unique(ids).tolist() if token not in self._kinds],
            np.int32,
        )
        if len(unknown):
            found = find_kinds(
                unknown, KINDS, lambda one: self.texts(np.array(one, np.int64))[0]
            )
            for token, kind in zip(unknown.tolist(), found.of_W.tolist(), strict=True):
                self._kinds[token] = KIND_NAMES.index(kind)
        return np.array([self._kinds[int(token)] for token in ids], np.uint8)

    def response(self, ids: Sequence[int]) -> str:
        """Return a whole response as text, as the grader reads it."""
        if self._tokenizer is None:
            return ""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def question(self, ids: NDArray[Any]) -> str:
        """Return what a prompt asks, without the chat template around it.

        That is the last part between two added tokens that is longer than the name of
        a role.
        """
        parts = np.split(ids, np.flatnonzero(np.isin(ids, self._special)))
        long = [part for part in parts if len(part) > _ROLE_TOKENS]
        asked = long[-1] if long else ids
        pieces = self.texts(asked[np.isin(asked, self._special, invert=True)])
        return re.sub(r"^user\s", "", "".join(pieces).strip()).strip()

    @cached_property
    def _special(self) -> list[int]:
        # A template's tokens are added ones, but not always declared as special.
        tokenizer = self._tokenizer
        return [] if tokenizer is None else sorted(tokenizer.get_added_vocab().values())

    def _spell(self, ids: Sequence[int]) -> list[str]:
        if self._tokenizer is None:
            return [f"[{token}] " for token in ids]
        size = len(self._tokenizer)
        inside = [token if 0 <= token < size else 0 for token in ids]
        texts = self._inside_a_sentence(inside)
        return [
            self._bytes_of(token)
            if LOST in text
            else text
            if token == asked
            else f"[no token {asked}]"
            for token, asked, text in zip(inside, ids, texts, strict=True)
        ]

    def _inside_a_sentence(self, ids: Sequence[int]) -> list[str]:
        """Return texts with the blank that a tokenizer puts between two words.

        Decoded alone, a token of a SentencePiece or word tokenizer loses it.
        """
        tokenizer: Any = self._tokenizer
        decode = tokenizer.batch_decode
        before, anchor = self._anchor
        alone: list[str] = decode([[token] for token in ids])
        if anchor is None:
            return alone
        pairs: list[str] = decode([[anchor, token] for token in ids])
        return [
            pair[len(before) :] if pair.startswith(before) else single
            for pair, single in zip(pairs, alone, strict=True)
        ]

    @cached_property
    def _anchor(self) -> tuple[str, int | None]:
        """Return a plain token to put before another, and its text."""
        tokenizer: Any = self._tokenizer
        special = set(tokenizer.all_special_ids)
        for token in range(min(len(tokenizer), 2000)):
            text = tokenizer.decode([token])
            if token not in special and text.isascii() and text.isalnum():
                return text, token
        return "", None

    def _bytes_of(self, token: int) -> str:
        tokenizer: Any = self._tokenizer
        piece: str = tokenizer.convert_ids_to_tokens([token])[0]
        if piece.startswith("<0x"):  # SentencePiece
            return "\\x" + piece[3:5]
        values = [_BYTES.get(character) for character in piece]
        if None in values:
            return LOST
        return "".join(
            chr(value) if 32 <= value < 127 else f"\\x{value:02X}"
            for value in values
            if value is not None
        )


def token_texts(run: Run) -> tuple[TokenTexts, str | None]:
    """Return the spelling of a run's tokens, and what is missing for it, if anything.

    The tokenizer is that of the exported student, or of the student that it began as.
    """
    folder = _tokenizer_folder(run)
    if folder is None:
        return TokenTexts(None), (
            "The student's tokenizer is neither in export/ nor on this machine:"
            " tokens are shown by their numbers."
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return TokenTexts(None), (
            f"The tokenizer in {folder} cannot be read ({reason}): tokens are shown by"
            " their numbers."
        )
    return TokenTexts(tokenizer), None


def _tokenizer_folder(run: Run) -> Path | None:
    if (run.folder.export / "tokenizer_config.json").is_file():
        return run.folder.export
    config: Config | None = run.config
    if config is None:
        return None
    try:
        return find_student(config)
    except UserError:
        return None


def _byte_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    The table of GPT-2: printable bytes are themselves, others begin at U+0100.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    table = {chr(value): value for value in printable}
    return table | {chr(256 + place): value for place, value in enumerate(others)}


_BYTES = _byte_characters()


def vocabulary(texts: TokenTexts, parts: Iterable[NDArray[Any]]) -> dict[str, Any]:
    """Return the columns that spell all ids of some arrays."""
    ids = np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))
    return {"token_ids": ids.astype(np.uint32), "token_texts": texts.texts(ids)}


__all__ = ["KINDS", "KIND_NAMES", "TokenTexts", "token_texts", "vocabulary"]
