"""Where a response ends: one rule for engines, given responses and `topd check`.

A response ends at the token with which the chat template ends a turn, at the
tokenizer's eos_token, and at the EOS ids of generation_config.json (or of config.json,
where generation_config.json has none). All of them, because each ends a turn of the
model for one of the libraries that may have trained it: a base model's files name
<|endoftext|> alone, while the template that it is trained under ends turns with
<|im_end|>. An engine that did not stop there would run every response to its limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError
from topd_ray.models.chat_template import TOKENIZER_CONFIG, end_of_turn, named_token
from topd_ray.models.files import CONFIG, read_config, read_json
from topd_ray.models.vocabulary import TOKENIZER, read_vocabulary

GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "the chat template"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopToken:
    """One token at which a response ends.

    Example: StopToken(token_id=151645, token="<|im_end|>", sources=("the chat
    template", "tokenizer_config.json", "generation_config.json")).
    """

    token_id: int
    token: str
    sources: tuple[str, ...]
    """What names it."""

    def __str__(self) -> str:
        return f"{self.token} ({self.token_id}: {', '.join(self.sources)})"


def stop_tokens(folder: Path) -> tuple[StopToken, ...]:
    """Return the tokens that end a response; the one that ends a turn comes first.

    Raises UserError where nothing names one.
    """
    tokens = read_vocabulary(folder) if (folder / TOKENIZER).is_file() else {}
    sources: dict[int, list[str]] = {}
    for token_id, source in _named(folder, tokens):
        sources.setdefault(token_id, []).append(source)
    if not sources:
        raise UserError(
            f"{folder}: neither its chat template nor tokenizer_config.json,"
            " generation_config.json or config.json names a token that ends a response;"
            " add eos_token_id to generation_config.json"
        )
    return tuple(
        StopToken(
            token_id=token_id,
            token=tokens.get(token_id, "no token of the tokenizer"),
            sources=tuple(names),
        )
        for token_id, names in sources.items()
    )


def eos_ids(folder: Path) -> tuple[int, ...]:
    """Return the token ids that end a response, ascending. Raises UserError."""
    return tuple(sorted(token.token_id for token in stop_tokens(folder)))


def _named(folder: Path, tokens: dict[int, str]) -> Iterator[tuple[int, str]]:
    """Yield ids with the file that names them, those that end a turn first."""
    ids = {token: token_id for token_id, token in tokens.items()}
    if tokens:
        for token, source in (
            (end_of_turn(folder), CHAT_TEMPLATE),
            (named_token(folder, "eos_token"), TOKENIZER_CONFIG),
        ):
            if token is not None and token in ids:
                yield ids[token], source
    for name, values in _configs(folder):
        found = _ids(folder / name, values.get("eos_token_id"))
        for token_id in found:
            yield token_id, name
        # As in vLLM and transformers: config.json only where the other has none.
        if found:
            return


def _configs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if (folder / GENERATION_CONFIG).is_file():
        yield GENERATION_CONFIG, read_json(folder / GENERATION_CONFIG)
    yield CONFIG, read_config(folder)


def _ids(file: Path, value: object) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token_id, int) for token_id in ids):
        raise UserError(
            f"{file}: eos_token_id={value!r}: expected a token id or a list"
        )
    return tuple(sorted(set(ids)))


__all__ = ["StopToken", "eos_ids", "stop_tokens"]
