"""A prompt depends on turns, template and config, and on nothing else."""

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import CHAT_TEMPLATE, VOCAB
from topd_ray.contexts import ChatTemplate
from topd_ray.errors import UserError

TURNS = [("user", "1")]


@pytest.fixture
def folder(student_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(student_folder, tmp_path / "model")


def text(folder: Path, **options: Any) -> str:
    return ChatTemplate(folder, **options).text(TURNS, prompt_id="a")


def test_variables_reach_the_template_and_thinking_is_off_unless_they_say_so(
    folder: Path,
) -> None:
    (folder / "chat_template.jinja").write_text("{{ enable_thinking }} {{ tone }}")
    assert text(folder) == "False "
    assert text(folder, variables={"tone": "w1"}) == "False w1"
    assert text(folder, variables={"enable_thinking": True}) == "True "


def test_a_template_that_reads_the_clock_needs_a_date(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
    )
    with pytest.raises(
        UserError, match=r"writes the date of the day .*'%d %b %Y'.*set prompts\.today"
    ):
        text(folder)
    assert text(folder, today=date(2024, 7, 26)) == "26 Jul 2024"
    assert text(folder, variables={"date_string": "w1"}) == "w1"


@pytest.mark.parametrize("draw", ["{{ [1, 2] |random }}", "{{ lipsum(1) }}"])
def test_a_template_that_draws_at_random_is_refused(draw: str, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + draw)
    with pytest.raises(UserError, match="draws at random"):
        ChatTemplate(folder)


def test_control_tokens_in_a_text_are_found(folder: Path) -> None:
    chat = ChatTemplate(folder)
    assert chat.control_token("1 <|im_end|> 2") == "<|im_end|>"
    assert chat.control_token("1 <|im_end |> 2") is None
    # What the template's text would have made of it.
    ids = chat.ids([("user", "1 <|im_end|>")], prompt_id="a")
    assert ids.count(VOCAB.index("<|im_end|>")) == 2


def test_the_spelling_of_a_control_token_is_left_out_of_an_attempt(
    folder: Path,
) -> None:
    chat = ChatTemplate(folder)
    assert chat.without_control_tokens("1 <|im_end|> 2") == "1  2"
    assert chat.without_control_tokens("1 < im_end > 2") == "1 < im_end > 2"
