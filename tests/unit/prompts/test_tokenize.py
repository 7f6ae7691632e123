"""The student's chat template, applied once; what does not fit is dropped by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import VOCAB
from topd_ray.errors import UserError
from topd_ray.prompts import DroppedPrompt, PromptRecord, Turn, tokenize_records


def record(prompt_id: str, *texts: str, role: str = "user") -> PromptRecord:
    turns = tuple(Turn(role=role, text=text) for text in texts)
    return PromptRecord(prompt_id=prompt_id, turns=turns, answer="4")


def test_token_ids_are_the_template_with_the_generation_prompt(student_folder: Path) -> None:
    kept, dropped = tokenize_records([record("a", "1 w2 3")], folder=student_folder, max_tokens=800)
    (prompt,) = kept
    words = ["<|im_start|>", "user", "1", "w2", "3", "<|im_end|>", "<|im_start|>", "assistant"]
    assert prompt.token_ids_P.tolist() == [VOCAB.index(word) for word in words]
    assert prompt.token_ids_P.dtype == np.int32
    assert (prompt.prompt_id, prompt.answer, dropped) == ("a", "4", [])


def test_the_template_hears_that_thinking_is_off(student_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    (folder / "chat_template.jinja").write_text(
        "{% if enable_thinking is defined and enable_thinking is false %}w7{% else %}w8{% endif %}"
    )
    kept, _ = tokenize_records([record("a", "1")], folder=folder, max_tokens=800)
    assert kept[0].token_ids_P.tolist() == [VOCAB.index("w7")]


def test_empty_and_long_prompts_are_dropped_with_a_reason(student_folder: Path) -> None:
    records = [
        record("fits", "1 2"),
        record("long", "1 2 3"),
        record("blank", " \n"),
        record("none"),
        record("system only", "1", role="system"),
    ]
    kept, dropped = tokenize_records(records, folder=student_folder, max_tokens=7)
    assert [prompt.prompt_id for prompt in kept] == ["fits"]
    assert dropped == [
        DroppedPrompt(prompt_id="long", reason="too_long", detail="8 tokens, prompts.max_tokens=7"),
        *(
            DroppedPrompt(prompt_id=name, reason="empty", detail="no text of a user in it")
            for name in ("blank", "none", "system only")
        ),
    ]


def test_nothing_left_is_an_error_that_counts_the_reasons(student_folder: Path) -> None:
    records = [record("long", "1 2 3"), record("blank", "")]
    with pytest.raises(UserError, match=r"all 2 prompts were dropped \(1 empty, 1 too_long\)"):
        tokenize_records(records, folder=student_folder, max_tokens=7)
    with pytest.raises(UserError, match="no prompts"):
        tokenize_records([], folder=student_folder, max_tokens=7)


def test_a_template_that_refuses_a_prompt_is_named_with_it(
    student_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system turns, please') }}")
    with pytest.raises(UserError, match=r"prompt 'a': .*refuses it: no system turns, please"):
        tokenize_records([record("a", "1")], folder=folder, max_tokens=7)


def test_a_folder_without_a_usable_tokenizer_is_named(student_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        tokenize_records([record("a", "1")], folder=folder, max_tokens=7)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no usable tokenizer"):
        tokenize_records([record("a", "1")], folder=folder, max_tokens=7)
    with pytest.raises(UserError, match="no usable tokenizer"):
        tokenize_records([record("a", "1")], folder=tmp_path / "none", max_tokens=7)
