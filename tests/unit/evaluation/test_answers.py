r"""Answers in \boxed{}: found, and compared as mathematics without ever hanging."""

import multiprocessing
import threading

import pytest

from topd_ray.evaluation import answers
from topd_ray.evaluation.answers import extract_boxed, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1} no, \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\}}", r"\}"),
        ("\\boxed{a\nb}", "a\nb"),
        (r"\boxed{}", ""),
        (r"\boxed{5} and then \boxed{6", "5"),
        (r"\boxed{", None),
        (r"\boxed 5", None),
        (r"} \boxed{1} {", "1"),
        (r"{ \boxed{1}", "1"),
        (r"\boxed{a \\}", r"a \\"),
        (r"\boxed{\boxed{1} + \boxed{2", "1"),
        (r"boxed{5}", None),
        ("", None),
    ],
)
def test_the_last_whole_box_is_the_answer(text: str, answer: str | None) -> None:
    assert extract_boxed(text) == answer


def test_a_long_text_of_open_boxes_is_read_quickly() -> None:
    assert extract_boxed(r"\boxed{" * 2000) is None


SAME = [
    ("4", "4"),
    (" 4 ", "4"),
    ("1/2", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac12", "0.5"),
    ("1,000", "1000"),
    ("x + 1", "1 + x"),
    ("x=3", "3"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\text{A}", "A"),
    ("3.0", "3"),
    ("Monday", "monday"),
]
DIFFERENT = [
    (None, "4"),
    (None, ""),
    ("", "4"),
    ("4", ""),
    ("5", "4"),
    ("(1,2)", "(2,1)"),
    ("east", "seat"),
    ("{", "4"),
    ("1/0", "4"),
    ("\\" * 50, "4"),
    ("\x00", "4"),
    ("\ud800", "4"),
    ("4" * 100_000, "4"),
    ("(" * 100, "4"),
    (r"\frac{\frac{\frac{", "4"),
]


@pytest.mark.parametrize(("predicted", "truth"), SAME)
def test_equal_answers_match(predicted: str, truth: str) -> None:
    assert same_answer(predicted, truth)


@pytest.mark.parametrize(("predicted", "truth"), DIFFERENT)
def test_other_answers_and_garbage_do_not(predicted: str | None, truth: str) -> None:
    assert not same_answer(predicted, truth)


def test_answers_compare_outside_the_main_thread_too() -> None:
    verdicts: list[bool] = []
    thread = threading.Thread(target=lambda: verdicts.append(same_answer("1/2", "0.5")))
    thread.start()
    thread.join()
    assert verdicts == [True]


def test_an_answer_that_never_ends_is_no_match_and_harms_no_later_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert same_answer(
        "1/2", "0.5"
    )  # started, so that the short deadline covers only the answer
    with monkeypatch.context() as patch:
        patch.setattr(answers, "COMPARE_DEADLINE_S", 0.5)
        assert not same_answer("9^{9^{9}}", "4")
    assert "'9^{9^{9}}' against '4': no verdict within 0.5 s" in caplog.text
    assert same_answer("1/2", "0.5")


def test_a_comparing_process_that_was_killed_is_started_again() -> None:
    assert same_answer("1/2", "0.5")
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    assert same_answer("1/2", "0.5")


@pytest.mark.parametrize(
    ("predicted", "truth", "is_same"),
    [("007", "7", True), ("-0", "0", True), ("9" * 199, "9" * 198, False)],
)
def test_integers_are_compared_without_a_process(
    predicted: str, truth: str, is_same: bool
) -> None:
    from topd_ray.evaluation import answers

    before = answers._comparer._process
    assert same_answer(predicted, truth) is is_same
    assert answers._comparer._process is before
