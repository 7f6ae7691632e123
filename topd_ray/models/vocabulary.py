"""Ids of a model: those of its tokenizer, and the rows that its embedding has for them.

An embedding may have more rows than the tokenizer has ids: sizes are rounded up, and
differently in models of one family (Qwen2.5: 151,936 and 152,064 rows, one tokenizer).
The rows behind the last id were never trained, and no text has their ids. So they are
no part of any distribution here: the ids of a run are those of the tokenizer.
"""

from collections.abc import Iterable
from pathlib import Path

from topd_ray.errors import UserError
from topd_ray.models.facts import ModelFacts
from topd_ray.models.files import read_json

TOKENIZER = "tokenizer.json"


def num_ids(folder: Path) -> int:
    """Return V, the number of ids: one more than the tokenizer's highest.

    Raises UserError where tokenizer.json is missing or broken.
    """
    return max(read_vocabulary(folder)) + 1


def read_vocabulary(folder: Path) -> dict[int, str]:
    """Return the token of every id in tokenizer.json, added tokens included.

    Raises UserError where the file is missing or broken, or has no tokens.
    """
    path = folder / TOKENIZER
    tokenizer = read_json(path)
    try:
        vocab = tokenizer["model"]["vocab"]
        if isinstance(vocab, dict):
            tokens = {int(token_id): str(token) for token, token_id in vocab.items()}
        else:  # Unigram: [piece, score] in the order of ids
            tokens = {token_id: str(piece[0]) for token_id, piece in enumerate(vocab)}
        added = tokenizer.get("added_tokens") or []
        tokens |= {int(token["id"]): str(token["content"]) for token in added}
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(f"{path}: expected `model.vocab` and `added_tokens`") from None
    if not tokens:
        raise UserError(f"{path}: holds no tokens")
    return tokens


def check_vocabulary(
    folder: Path, facts: ModelFacts, *, ends: Iterable[int], role: str
) -> None:
    """Raise UserError where the tokenizer has an id that the model cannot take.

    `ends` are the ids at which a response ends. One that the tokenizer does not have is
    refused too: it is never sampled, so no response would end with it.
    """
    tokens = read_vocabulary(folder)
    highest = max(tokens)
    if highest >= facts.vocab_size:
        raise UserError(
            f"{role}: {folder / TOKENIZER} has ids up to {highest}"
            f" ({tokens[highest]!r}), but the embedding has {facts.vocab_size} rows"
            " (vocab_size in config.json); resize the embedding to the tokenizer, or"
            " remove the added tokens"
        )
    for token_id in ends:
        if token_id > highest:
            raise UserError(
                f"{role}: {folder}: eos_token_id {token_id} is no id of its tokenizer,"
                f" whose highest is {highest}; correct generation_config.json"
            )


__all__ = ["check_vocabulary", "num_ids", "read_vocabulary"]
