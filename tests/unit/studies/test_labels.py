"""Labels of responses whose truth one can read."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topd_ray.studies.labels import Label, first_difference, token_spans
from topd_ray.studies.sum_labels import label_sums, written_sums
from topd_ray.studies.toy_labels import label_toy
from topd_ray.toy.problems import Slips, solve_carelessly
from topd_ray.toy.wording import (
    CONNECTIVES,
    LINKS,
    STUDENT_WORDING,
    VERBS,
    draw_surface,
    spoken_words,
)


def spans_of(*tokens: str) -> list[tuple[int, int]]:
    ends = [0]
    for token in tokens:
        ends.append(ends[-1] + len(token))
    return list(pairwise(ends))


def sums_of(*tokens: str) -> list[tuple[str, Label]]:
    """The tokens of a text that have a label, with it."""
    labels = label_sums("".join(tokens), spans_of(*tokens))
    return [
        (token, label) for token, label in zip(tokens, labels, strict=True) if label
    ]


def results(text: str) -> list[tuple[str, str | None]]:
    """Each result of a text up to the end of its digits, and what is wrong in it."""
    return [
        (text[found.start :].split()[0], found.departs and text[found.departs :][:1])
        for found in written_sums(text)
    ]


def test_a_token_of_several_characters_has_one_span() -> None:
    pieces = ["a", "é", "", "b7"]
    text, spans = token_spans(range(4), lambda ids: "".join(pieces[i] for i in ids))
    assert [text[start:end] for start, end in spans] == pieces


def test_a_character_of_several_tokens_belongs_to_the_first() -> None:
    data = "7\u20ac8".encode()
    parts = [data[:1], data[1:2], data[2:4], data[4:]]
    text, spans = token_spans(
        range(4), lambda ids: b"".join(parts[i] for i in ids).decode(errors="replace")
    )
    assert text == "7\u20ac8"
    assert [text[start:end] for start, end in spans] == ["7", "\u20ac", "", "8"]


def test_the_fork_is_the_first_wrong_digit_of_a_result() -> None:
    tokens = ("So", " 98", " +", " 63", " =", " ", "1", "7", "1", ".", " Then", " stop")
    assert sums_of(*tokens) == [("7", "fork")]


def test_words_before_a_right_result_are_wording_and_those_before_a_wrong_one_not() -> (
    None
):
    tokens = ("So", ":", " 5", " +", " 3", " =", " 8", ".", " Now", " 8", " -", " 1")
    assert sums_of(*tokens, " =", " 9", " End") == [
        ("So", "wording"),
        (":", "wording"),
        (" 9", "fork"),
    ]


def test_markup_with_an_operator_or_a_digit_has_no_label() -> None:
    tokens = ("**", "Step", " 1", "**", ":", "\n", "-", " 5 + 3 =", " 8")
    assert [token for token, _ in sums_of(*tokens)] == ["Step", ":", "\n"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("31 - 7 = 24", [("24", None)]),
        ("31 - 7 = 14", [("14", "1")]),
        ("31-7=24.", [("24.", None)]),
        ("3 - 40 = -37", [("-37", None)]),
        ("3 - 40 = 37", [("37", "3")]),
        ("-19 - 18 = -37", [("-37", None)]),
        ("46 - (-35) = 81", [("81", None)]),
        ("46 - -35 = 81", [("81", None)]),
        ("2 + 3 - 4 + 50 = 51", [("51", None)]),
        ("\\(25 + 63 = 88\\)", [("88\\)", None)]),
        ("**25 + 63 = 98**", [("98**", "9")]),
        ("25 + 63 = 8, then", [("8,", ",")]),  # ends too early
        ("25 + 63 = 888", [("888", "8")]),
        ("25 + 63 - 39 = 88 - 39 = 49", [("49", None)]),
        ("1. 5 + 3 = 8\n2. 8 + 1 = 9", [("8", None), ("9", None)]),
        ("first:\n- 5 + 3 = 8", [("8", None)]),
    ],
)
def test_a_result_is_held_against_the_terms_before_it(text, expected) -> None:
    assert results(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "3.5 + 2 = 5.5",
        "3 * 4 + 5 = 18",
        "3 \\times 4 + 5 = 18",
        "(37 + 49) - (91 + 70) = 5",
        "5 + 3 = 8.5",
        "5 + 3 = 8 * 2",
        "5 + 3 = 1,200",
        "5 + 3 = 8 \\times 2",
        "x - 5 + 3 = 2",
        "10 + 5 = 15%",
        "6 * 7 = 43",
    ],
)
def test_what_is_no_whole_sum_of_integers_is_left_out(text: str) -> None:
    assert results(text) == []


@given(
    terms=st.lists(st.integers(0, 999), min_size=2, max_size=4),
    signs=st.lists(st.sampled_from("+-"), min_size=3, max_size=3),
    error=st.integers(-20, 20),
)
def test_a_sum_is_right_exactly_where_its_value_is(terms, signs, error) -> None:
    value = terms[0]
    written = str(terms[0])
    for sign, term in zip(signs, terms[1:], strict=False):
        value += term if sign == "+" else -term
        written += f" {sign} {term}"
    (found,) = written_sums(f"{written} = {value + error}\n")
    assert (found.departs is None) == (error == 0)


@given(st.text("01", min_size=1), st.text("01", min_size=1))
def test_the_first_difference_is_behind_the_common_beginning(one, other) -> None:
    if one == other:
        return
    at = first_difference(one, other)
    assert one[:at] == other[:at]
    assert one[at : at + 1] != other[at : at + 1]


EXPRESSIONS = (
    "3 + 4 * 7",
    "5 - 1 * 2 * 8",
    "9 + 7 * ( 3 * 4 )",
    "2 - 8 * 7 - 6",
    "( 3 - 5 ) * 4 + 6",
)


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("seed", range(6))
def test_the_toy_world_s_own_forks_are_found(expression: str, seed: int) -> None:
    rng = Random(seed)
    slips = Slips(brackets=0.5, precedence=0.5, misconception=0.5)
    solution = solve_carelessly(tuple(expression.split()), rng, slips)
    surface = draw_surface(rng, STUDENT_WORDING, len(solution.steps))
    words, wrong_turns = spoken_words(solution, surface)
    tokens = [words[0], *(f" {word}" for word in words[1:])]
    labels = label_toy("".join(tokens), spans_of(*tokens))
    forks = [at for at, label in enumerate(labels) if label == "fork"]
    # A slip that leaves the value as it was is no wrong fork.
    num_harmful = sum(step.wrong_fork for step in solution.steps)
    assert len(forks) == num_harmful
    assert set(forks) <= wrong_turns
    wording = [words[at] for at, label in enumerate(labels) if label == "wording"]
    assert len(wording) == 3 * len(solution.steps)
    assert set(wording) <= {*CONNECTIVES, *VERBS, *LINKS}


RIGHT = (
    "we start from 3 + 4 * 7 . so we take 4 * 7 , which gives 8 . hence we have 3 + 8 ."
    " so we take 3 + 8 , which is 1 . hence the answer is \\boxed{ 1 }"
)


@pytest.mark.parametrize(
    ("old", "new", "fork"),
    [
        ("gives 8 . hence we have 3 + 8", "gives 9 . hence we have 3 + 9", "9"),
        ("have 3 + 8", "have 3 - 8", "-"),
        (
            "is 1 . hence the answer is \\boxed{ 1",
            "is 4 . so the answer is \\boxed{ 4",
            "4",
        ),
        ("boxed{ 1", "boxed{ 5", "5"),
        ("have 3 + 8", "have 3", "."),
        # What is no expression has no label, and neither has what follows from it.
        ("have 3 + 8", "have 3 + +", None),
        ("start from 3 + 4 * 7", "start from 3 + 4 ( 7", None),
        ("take 4 * 7 , which gives 8", "take 8", None),
        # An early answer.
        (RIGHT[RIGHT.index("we have") :], "the answer is \\boxed{ 5 }", None),
    ],
)
def test_an_error_of_any_kind_is_found_where_it_begins(old, new, fork) -> None:
    assert old in RIGHT
    tokens = [f" {word}" for word in RIGHT.replace(old, new, 1).split()]
    labels = label_toy("".join(tokens), spans_of(*tokens))
    found = [
        token.strip()
        for token, label in zip(tokens, labels, strict=True)
        if label == "fork"
    ]
    # The copy goes on from the right step, which is a second error.
    assert found[:1] == ([fork] if fork else [])
