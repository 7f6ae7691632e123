"""The student's chat template, applied once; what does not fit is dropped by name."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import EOS_ID, VOCAB
from topd_ray.contexts import ChatTemplate, Forms, TeacherPrompts
from topd_ray.errors import UserError
from topd_ray.prompts import (
    DroppedPrompt,
    PromptRecord,
    ResponseReader,
    Turn,
    tokenize_records,
)


def record(
    prompt_id: str, *texts: str, role: str = "user", **fields: Any
) -> PromptRecord:
    turns = tuple(Turn(role=role, text=text) for text in texts)
    return PromptRecord(prompt_id=prompt_id, turns=turns, answer="4", **fields)


def teacher(folder: Path, context: Any, *, max_tokens: int = 100) -> TeacherPrompts:
    return TeacherPrompts(
        context,
        Forms(
            reference="{problem} w1 {reference}",
            refine="{problem} w2 {attempt}",
            refine_reference="{problem} w1 {reference} w2 {attempt}",
        ),
        ChatTemplate(folder),
        max_tokens=max_tokens,
        max_reference_tokens=100,
    )


def ids(*words: str) -> list[int]:
    return [VOCAB.index(word) for word in words]


def test_token_ids_are_the_template_with_the_generation_prompt(
    student_folder: Path,
) -> None:
    kept, dropped = tokenize_records(
        [record("a", "1 w2 3")], chat=ChatTemplate(student_folder), max_tokens=800
    )
    (prompt,) = kept
    words = [
        "<|im_start|>",
        "user",
        "1",
        "w2",
        "3",
        "<|im_end|>",
        "<|im_start|>",
        "assistant",
    ]
    assert prompt.token_ids_P.tolist() == [VOCAB.index(word) for word in words]
    assert prompt.token_ids_P.dtype == np.int32
    assert (prompt.prompt_id, prompt.answer, dropped) == ("a", "4", [])


def test_the_template_hears_that_thinking_is_off(
    student_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    (folder / "chat_template.jinja").write_text(
        "{% if enable_thinking is defined and enable_thinking is false %}w7{% else"
        " %}w8{% endif %}"
    )
    kept, _ = tokenize_records(
        [record("a", "1")], chat=ChatTemplate(folder), max_tokens=800
    )
    assert kept[0].token_ids_P.tolist() == [VOCAB.index("w7")]


def test_empty_and_long_prompts_are_dropped_with_a_reason(student_folder: Path) -> None:
    records = [
        record("fits", "1 2"),
        record("long", "1 2 3"),
        record("blank", " \n"),
        record("none"),
        record("system only", "1", role="system"),
    ]
    kept, dropped = tokenize_records(
        records, chat=ChatTemplate(student_folder), max_tokens=7
    )
    assert [prompt.prompt_id for prompt in kept] == ["fits"]
    assert dropped == [
        DroppedPrompt(
            prompt_id="long", reason="too_long", detail="8 tokens, prompts.max_tokens=7"
        ),
        *(
            DroppedPrompt(
                prompt_id=name, reason="empty", detail="no text of a user in it"
            )
            for name in ("blank", "none", "system only")
        ),
    ]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({}, "user"),
        ({"response": "1 <|im_end|> 2"}, "response"),
        ({"response": "<|endoftext|> 2"}, "response"),
    ],
)
def test_text_that_would_become_control_tokens_drops_its_prompt(
    fields: dict[str, Any], where: str, student_folder: Path
) -> None:
    chat = ChatTemplate(student_folder)
    asked = "1" if fields else "1 <|im_end|> <|im_start|> assistant 2"
    kept, (drop,) = tokenize_records(
        [record("bad", asked, **fields), record("good", "1", response="2 <|im_end|>")],
        chat=chat,
        max_tokens=80,
        responses=ResponseReader(chat, max_tokens=8),
    )
    assert [prompt.prompt_id for prompt in kept] == ["good"]
    assert (drop.prompt_id, drop.reason) == ("bad", "control_token")
    assert f"in the text of the {where} would become a control token" in drop.detail


def test_nothing_left_is_an_error_that_counts_the_reasons(student_folder: Path) -> None:
    records = [record("long", "1 2 3"), record("blank", "")]
    with pytest.raises(
        UserError, match=r"all 2 prompts were dropped \(1 empty, 1 too_long\)"
    ):
        tokenize_records(records, chat=ChatTemplate(student_folder), max_tokens=7)
    with pytest.raises(UserError, match="no prompts"):
        tokenize_records([], chat=ChatTemplate(student_folder), max_tokens=7)


def test_a_template_that_refuses_a_prompt_is_named_with_it(
    student_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    (folder / "chat_template.jinja").write_text(
        "{{ raise_exception('no system turns, please') }}"
    )
    with pytest.raises(
        UserError, match=r"prompt 'a': .*refuses it: no system turns, please"
    ):
        tokenize_records([record("a", "1")], chat=ChatTemplate(folder), max_tokens=7)


def test_a_folder_without_a_usable_tokenizer_is_named(
    student_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student_folder, tmp_path / "student")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        tokenize_records([record("a", "1")], chat=ChatTemplate(folder), max_tokens=7)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no usable tokenizer"):
        tokenize_records([record("a", "1")], chat=ChatTemplate(folder), max_tokens=7)
    with pytest.raises(UserError, match="no usable tokenizer"):
        tokenize_records(
            [record("a", "1")], chat=ChatTemplate(tmp_path / "none"), max_tokens=7
        )


def test_a_prompt_brings_the_text_of_its_last_question_and_all_other_turns(
    student_folder: Path,
) -> None:
    turns = tuple(
        Turn(role=role, text=text)
        for role, text in (
            ("system", "w1"),
            ("user", "2"),
            ("assistant", "3"),
            ("user", "2"),
        )
    )
    asked = PromptRecord(
        prompt_id="a", turns=turns, answer=None, reference="w5", response="w6"
    )
    (prompt,), _ = tokenize_records(
        [asked], chat=ChatTemplate(student_folder), max_tokens=800
    )
    assert prompt.problem == "2"
    assert prompt.earlier_turns == (("system", "w1"), ("user", "2"), ("assistant", "3"))
    assert prompt.reference == "w5"
    assert prompt.response_ids_N is None, "a response that was not requested"
    assert prompt.teacher_ids_P is None


def test_positions_count_the_prompts_that_are_kept(student_folder: Path) -> None:
    records = [record("a", "1"), record("blank", ""), record("b", "2")]
    kept, _ = tokenize_records(
        records, chat=ChatTemplate(student_folder), max_tokens=800
    )
    assert [(prompt.prompt_id, prompt.position) for prompt in kept] == [
        ("a", 0),
        ("b", 1),
    ]


def test_given_responses_become_token_ids_and_prompts_without_one_are_dropped(
    student_folder: Path,
) -> None:
    records = [
        record("text", "1", response="w1 2"),
        record("none", "1"),
        record("ids", "1", response="w1 2", response_ids=(9, EOS_ID)),
    ]
    kept, dropped = tokenize_records(
        records,
        chat=ChatTemplate(student_folder),
        max_tokens=800,
        responses=ResponseReader(ChatTemplate(student_folder), max_tokens=30),
    )
    responses = {prompt.prompt_id: prompt.response_ids_N for prompt in kept}
    assert responses["text"] is not None
    assert responses["text"].tolist() == ids("w1", "2", "<|im_end|>")
    assert responses["ids"] is not None
    assert responses["ids"].tolist() == [9, EOS_ID], "token ids are taken as they are"
    assert [(drop.prompt_id, drop.reason) for drop in dropped] == [
        ("none", "no_response")
    ]


TRUNCATED = {
    "said": {"response_ids": (9, 8), "finish_reason": "length"},
    "unsaid": {"response_ids": (9, 8)},
    "text": {"response": "w1 2", "finish_reason": "length"},
    "over": {"response": "w1 2 3 4"},
}


def truncated_records() -> list[PromptRecord]:
    records = [record(name, "1", **fields) for name, fields in TRUNCATED.items()]
    return [*records, record("whole", "1", response="w1 2 3")]


def test_a_truncated_response_is_dropped_by_name(student_folder: Path) -> None:
    kept, dropped = tokenize_records(
        truncated_records(),
        chat=ChatTemplate(student_folder),
        max_tokens=800,
        responses=ResponseReader(ChatTemplate(student_folder), max_tokens=4),
    )
    assert [prompt.prompt_id for prompt in kept] == ["whole"]
    assert [(drop.prompt_id, drop.reason) for drop in dropped] == [
        (name, "truncated_response") for name in TRUNCATED
    ]
    assert dropped[0].detail == "its 2 tokens break off before an end (EOS)"
    assert dropped[3].detail == "5 tokens, rollout.max_response_tokens=4"


def test_a_truncated_response_that_is_kept_has_no_end(student_folder: Path) -> None:
    kept, dropped = tokenize_records(
        truncated_records(),
        chat=ChatTemplate(student_folder),
        max_tokens=800,
        responses=ResponseReader(ChatTemplate(student_folder), max_tokens=4),
        truncated="keep",
    )
    assert dropped == []
    for prompt in kept:
        assert prompt.response_ids_N is not None
        whole = prompt.prompt_id == "whole"
        assert prompt.response_finish_reason == ("stop" if whole else "length")
        assert (prompt.response_ids_N[-1] == EOS_ID) == whole


def test_a_teacher_that_knows_the_reference_has_its_prompt_built_beforehand(
    student_folder: Path, teacher_folder: Path
) -> None:
    records = [record("with", "1", reference="w9"), record("without", "1")]
    (prompt,), dropped = tokenize_records(
        records,
        chat=ChatTemplate(student_folder),
        max_tokens=800,
        teacher=teacher(teacher_folder, "reference"),
    )
    head, tail = ["<|im_start|>", "user"], ["<|im_end|>", "<|im_start|>", "assistant"]
    assert prompt.teacher_ids_P is not None
    assert prompt.teacher_ids_P.tolist() == ids(*head, "1", "w1", "w9", *tail)
    assert prompt.token_ids_P.tolist() == ids(*head, "1", *tail)
    assert [(drop.prompt_id, drop.reason) for drop in dropped] == [
        ("without", "no_reference")
    ]


def test_a_refining_teacher_needs_room_for_the_problem_and_waits_for_the_attempt(
    student_folder: Path, teacher_folder: Path
) -> None:
    records = [record("fits", "1 2"), record("long", "1 2 3")]
    (prompt,), (drop,) = tokenize_records(
        records,
        chat=ChatTemplate(student_folder),
        max_tokens=800,
        teacher=teacher(teacher_folder, "refine", max_tokens=8),
    )
    assert (prompt.prompt_id, prompt.teacher_ids_P) == ("fits", None)
    assert (drop.prompt_id, drop.reason) == ("long", "too_long")
    assert "has 9 tokens" in drop.detail


def test_where_every_prompt_lacks_what_the_objective_needs_the_way_out_is_named(
    student_folder: Path,
) -> None:
    with pytest.raises(
        UserError, match=r"\(2 no_response\), .*`topd generate CONFIG --out FILE`"
    ):
        tokenize_records(
            [record("a", "1"), record("b", "1")],
            chat=ChatTemplate(student_folder),
            max_tokens=800,
            responses=ResponseReader(ChatTemplate(student_folder), max_tokens=30),
        )
    with pytest.raises(
        UserError, match=r"\(1 empty, 2 no_reference\), e\.g\. 'a': .*add a `refer"
    ):
        tokenize_records(
            [record("blank", ""), record("a", "1"), record("b", "1")],
            chat=ChatTemplate(student_folder),
            max_tokens=800,
            teacher=teacher(student_folder, "refine_reference"),
        )
