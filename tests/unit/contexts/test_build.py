"""A teacher's prompt: what it holds, what is cut first, and that nothing is cut without
need.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import make
from topd_ray.contexts import (
    ChatTemplate,
    DoesNotFitError,
    Forms,
    TeacherPrompts,
    load_tokenizer,
)
from topd_ray.messages import Prompt

WORDS = st.lists(st.sampled_from([*"0123456789", "+", "?"]), max_size=12)
FORMS = Forms(
    reference="{problem} ( {reference} )",
    refine="{problem} ( {attempt} )",
    refine_reference="{problem} ( {reference} ) ( {attempt} )",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy world's word-level tokenizer."""
    from topd_ray.toy.tokenizer import make_tokenizer

    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bytes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer that knows no merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE({one: index for index, one in enumerate(alphabet)}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("bytes")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=(
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        ),
        clean_up_tokenization_spaces=False,
    ).save_pretrained(path)
    return path


def prompts(
    folder: Path, context: Any = "refine_reference", **limits: int
) -> TeacherPrompts:
    limits = {"max_tokens": 1000, "max_reference_tokens": 1000} | limits
    return TeacherPrompts(context, FORMS, ChatTemplate(folder), **limits)


def problem(
    text: str = "what is 1 + 1 ?", reference: str | None = None, **fields: Any
) -> Prompt:
    return make.prompt(problem=text, reference=reference, **fields)


def written(folder: Path, ids: Any) -> str:
    text: str = load_tokenizer(folder).decode(ids.tolist())
    return text


def test_the_form_takes_the_place_of_the_last_turn_and_the_others_stay(
    folder: Path,
) -> None:
    asked = problem(
        reference="2", earlier_turns=(("system", "we have"), ("assistant", "the"))
    )
    assert (
        written(folder, prompts(folder, "reference").build(asked))
        == "<|im_start|> system we have <|im_end|> <|im_start|> assistant the"
        " <|im_end|> "
        "<|im_start|> user what is 1 + 1 ? ( 2 ) <|im_end|> <|im_start|> assistant"
    )


@pytest.mark.parametrize(
    ("context", "text"),
    [
        ("reference", "1 ( 2 )"),
        ("refine", "1 ( 3 )"),
        ("refine_reference", "1 ( 2 ) ( 3 )"),
    ],
)
def test_each_context_holds_what_its_name_says(
    context: str, text: str, folder: Path
) -> None:
    built = prompts(folder, context).build(problem("1", reference="2"), attempt="3")
    assert f"user {text} <" in written(folder, built)


def test_the_template_hears_that_thinking_is_off(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "teacher")
    (copied / "chat_template.jinja").write_text(
        "{% if enable_thinking is defined and enable_thinking is false %}7{% else %}8{%"
        " endif %}"
    )
    assert written(copied, prompts(copied).build(problem())) == "7"


def test_a_reference_over_its_own_limit_loses_its_tail(folder: Path) -> None:
    built = prompts(folder, "reference", max_reference_tokens=3).build(
        problem("1", reference="5 6 7 8 9")
    )
    assert "( 5 6 7 )" in written(folder, built)


def parts(text: str) -> tuple[list[str], list[str]]:
    """Words of reference and attempt in a written prompt."""
    body = text.split("what is 1 + 1 ?")[1].split("<|im_end|>")[0]
    reference, attempt = body.replace(")", "(").split("(")[1::2]
    return reference.split(), attempt.split()


@settings(deadline=None, max_examples=40)
@given(reference=WORDS, attempt=WORDS, room=st.integers(0, 30))
def test_the_attempt_goes_first_then_the_reference_and_no_word_without_need(
    reference: list[str], attempt: list[str], room: int, folder: Path
) -> None:
    asked = problem(reference=" ".join(reference))
    bare = len(prompts(folder).build(problem()))
    built = prompts(folder, max_tokens=bare + room).build(
        asked, attempt=" ".join(attempt)
    )
    kept_reference, kept_attempt = parts(written(folder, built))
    # The oracle: the reference has its room first, the attempt what is left of it.
    expected_reference = reference[:room]
    assert kept_reference == expected_reference
    assert kept_attempt == attempt[: room - len(expected_reference)]
    assert len(built) == bare + len(kept_reference) + len(kept_attempt)


def test_a_problem_that_does_not_fit_even_alone_is_named(folder: Path) -> None:
    bare = len(prompts(folder).build(problem()))
    with pytest.raises(
        DoesNotFitError, match=f"'p0': the teacher's prompt has {bare} tokens with"
    ):
        prompts(folder, max_tokens=bare - 1).build(
            problem(reference="1 2"), attempt="3 4"
        )


@settings(deadline=None, max_examples=40)
@given(attempt=st.text("aé∑😀 ", max_size=12), room=st.integers(0, 30))
def test_a_cut_never_splits_a_character(
    attempt: str, room: int, bytes_folder: Path
) -> None:
    bare = len(prompts(bytes_folder, "refine").build(problem("x")))
    cutting = prompts(bytes_folder, "refine", max_tokens=bare + room)
    text = cutting.decode(cutting.build(problem("x"), attempt=attempt))
    kept = text.removeprefix("[user]x ( ").removesuffix(" )")
    assert attempt.startswith(kept)
    following = attempt[len(kept) : len(kept) + 1]
    assert len(kept.encode()) <= room
    assert not following or len((kept + following).encode()) > room, (
        "cut more than it had to"
    )


def test_a_decoded_response_has_no_special_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer("the answer is 4 <|im_end|>", return_tensors="np")["input_ids"][0]
    assert prompts(folder).decode(ids) == "the answer is 4"
