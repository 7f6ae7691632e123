"""Tokens as texts: blanks between words, parts of characters, kinds."""

import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from topd_ray.page.tokens import KIND_NAMES, TokenTexts


def words(*names: str) -> TokenTexts:
    model = WordLevel({name: index for index, name in enumerate(names)}, unk_token="?")
    return TokenTexts(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)))


def texts(tokens: TokenTexts, ids: list[int]) -> list[str]:
    return tokens.texts(np.array(ids, np.uint32))


def test_words_keep_the_blank_between_them() -> None:
    assert texts(words("?", "so", "we", "take"), [1, 2, 1]) == [" so", " we", " so"]


def test_part_of_a_character_is_written_as_its_bytes() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = BPE({character: index for index, character in enumerate(alphabet)}, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    ids = tokenizer.encode("a \u00e9").ids
    assert texts(tokens, ids) == ["a", " ", "\\xC3", "\\xA9"]


def test_a_number_that_is_no_token_is_said_to_be_none() -> None:
    assert texts(words("?", "so"), [1, 99]) == [" so", "[no token 99]"]


def test_without_a_tokenizer_a_token_is_its_number() -> None:
    tokens = TokenTexts(None)
    assert texts(tokens, [7, 11]) == ["[7] ", "[11] "]
    assert not tokens.is_readable


def test_each_token_is_of_one_kind() -> None:
    names = ["?", "12", "3.5", "+", "\\boxed{", "So", "therefore", ".", "apple", "--"]
    kinds = words(*names).kinds(np.arange(1, len(names)))
    assert [KIND_NAMES[kind] for kind in kinds] == [
        "digits",
        "digits",
        "operators",
        "operators",
        "connectives",
        "connectives",
        "punctuation",
        "other",
        "operators",
    ]
