"""Where a response ends: by template, tokenizer and config, in one rule."""

import json
from pathlib import Path

import pytest

from tests.tiny import EOS_ID, PAD_ID
from tests.unit.models.edits import edit_json, remove
from topd_ray.errors import UserError
from topd_ray.models.chat_template import end_of_turn
from topd_ray.models.stop_ids import eos_ids, stop_tokens

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{%"
    " endfor %}"
)


def add_special(folder: Path, *tokens: str) -> None:
    """Make tokens of the vocabulary, or new ones, special."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    for token in tokens:
        token_id = vocab.setdefault(token, len(vocab))
        tokenizer["added_tokens"].append(
            {"id": token_id, "content": token, "special": True}
        )
    path.write_text(json.dumps(tokenizer))


def test_a_base_model_that_names_another_eos_ends_where_its_template_ends_a_turn(
    folder: Path,
) -> None:
    """Every rollout would run to its limit, and kd would train an end that is none."""
    edit_json("config.json", eos_token_id=PAD_ID)(folder)
    edit_json("generation_config.json", eos_token_id=PAD_ID)(folder)
    assert eos_ids(folder) == (PAD_ID, EOS_ID)
    end, other = stop_tokens(folder)
    assert (end.token_id, end.token) == (EOS_ID, "<|im_end|>")
    assert end.sources == ("the chat template", "tokenizer_config.json")
    assert str(other) == f"<|endoftext|> ({PAD_ID}: generation_config.json)"


def test_the_template_counts_where_the_tokenizers_eos_is_another_token(
    folder: Path,
) -> None:
    add_special(folder, "<|im_end|>", "<|endoftext|>")
    edit_json("tokenizer_config.json", eos_token="<|endoftext|>")(folder)
    edit_json("generation_config.json", eos_token_id=PAD_ID)(folder)
    assert [token.token_id for token in stop_tokens(folder)] == [EOS_ID, PAD_ID]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        # Llama 2 ends a turn with the variable, and begins the next with another token.
        (
            "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{"
            " eos_token }}{% endif %}<s>{% endfor %}",
            "<|im_end|>",
        ),
        # GLM writes no end: the user's next turn is where a response has to stop.
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}",
            "<|user|>",
        ),
        # The last turn ends in another way than those before it.
        (
            "{% for m in messages %}{{ m.content }}{{ '<|return|>' if loop.last else"
            " '<|end|>' }}{% endfor %}",
            "<|return|>",
        ),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes_behind_it(
    template: str, end: str | None, folder: Path
) -> None:
    add_special(folder, "<s>", "<|user|>", "<|end|>", "<|return|>", "<|im_start|>")
    (folder / "chat_template.jinja").write_text(template)
    assert end_of_turn(folder) == end


def test_the_config_counts_where_the_generation_config_names_none(folder: Path) -> None:
    edit_json("config.json", eos_token_id=[5, EOS_ID, 5])(folder)
    assert eos_ids(folder) == (EOS_ID,)
    edit_json("generation_config.json", eos_token_id=None)(folder)
    assert eos_ids(folder) == (EOS_ID, 5)
    edit_json("generation_config.json", eos_token_id=[])(folder)
    assert eos_ids(folder) == (EOS_ID, 5)
    (folder / "generation_config.json").unlink()
    assert eos_ids(folder) == (EOS_ID, 5)


def test_a_folder_that_names_no_end_is_refused(folder: Path) -> None:
    edit_json("config.json", eos_token_id=None)(folder)
    edit_json("tokenizer_config.json", eos_token=None)(folder)
    remove("generation_config.json")(folder)
    remove("chat_template.jinja")(folder)
    with pytest.raises(UserError, match="names a token that ends a response"):
        eos_ids(folder)
    edit_json("config.json", eos_token_id="2")(folder)
    with pytest.raises(UserError, match="eos_token_id='2': expected a token id"):
        eos_ids(folder)
