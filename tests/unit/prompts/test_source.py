"""The order of prompts: fixed by the seed, whole every epoch, resumable anywhere."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import make
from topd_ray.messages import Prompt
from topd_ray.prompts import PromptSource


def prompts(count: int) -> list[Prompt]:
    return [
        make.prompt(
            i, prompt_id=f"p{i}", token_ids_P=np.full(3, i, np.int32), answer=str(i)
        )
        for i in range(count)
    ]


def ids(source: PromptSource, count: int) -> list[str]:
    return [prompt.prompt_id for prompt in source.take(count)]


@settings(deadline=None)
@given(
    count=st.integers(1, 12),
    seed=st.integers(0, 3),
    takes=st.lists(st.integers(0, 30), max_size=6),
    resume_after=st.integers(0, 6),
)
def test_any_split_of_takes_and_any_resume_give_the_same_sequence(
    count: int, seed: int, takes: list[int], resume_after: int
) -> None:
    expected = PromptSource(prompts(count), seed=seed).take(sum(takes))
    source = PromptSource(prompts(count), seed=seed)
    dealt = []
    for index, take in enumerate(takes):
        if index == resume_after:
            source = PromptSource(prompts(count), seed=seed, cursor=source.cursor)
        dealt += source.take(take)
    assert [p.prompt_id for p in dealt] == [p.prompt_id for p in expected]
    assert [p.position for p in dealt] == list(range(sum(takes)))
    assert source.cursor == sum(takes)


@settings(deadline=None)
@given(count=st.integers(1, 20), seed=st.integers(0, 5), step=st.integers(1, 7))
def test_every_prompt_comes_exactly_once_an_epoch_whatever_the_step(
    count: int, seed: int, step: int
) -> None:
    source = PromptSource(prompts(count), seed=seed)
    dealt: list[str] = []
    while len(dealt) < 3 * count:
        dealt += ids(source, step)
    for epoch in range(3):
        assert set(Counter(dealt[epoch * count : (epoch + 1) * count]).values()) == {1}
        assert len(set(dealt[epoch * count : (epoch + 1) * count])) == count


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    source = PromptSource(prompts(50), seed=0)
    first, second = ids(source, 50), ids(source, 50)
    assert first != second
    assert first != ids(PromptSource(prompts(50), seed=1), 50)
    assert first != [f"p{i}" for i in range(50)]


def test_the_order_is_the_same_on_every_machine() -> None:
    # Written down once: a change of this list breaks the resume of every run begun
    # before it.
    assert (
        "".join(ids(PromptSource(prompts(6), seed=7), 12)) == "p0p3p2p4p5p1p3p2p1p5p0p4"
    )


def test_a_position_can_be_asked_for_again_without_moving_the_cursor() -> None:
    source = PromptSource(prompts(5), seed=0)
    taken = source.take(13)
    assert [source.at(p).prompt_id for p in (12, 3, 7)] == [
        taken[p].prompt_id for p in (12, 3, 7)
    ]
    assert source.cursor == 13


def test_a_prompt_brings_its_tokens_and_answer() -> None:
    prompt = PromptSource(prompts(1), seed=0).take(1)[0]
    assert (prompt.prompt_id, prompt.answer, prompt.token_ids_P.tolist()) == (
        "p0",
        "0",
        [0, 0, 0],
    )


def test_no_prompts_or_a_negative_place_is_refused() -> None:
    with pytest.raises(ValueError, match="0 prompts"):
        PromptSource([], seed=0)
    with pytest.raises(ValueError, match="cursor=-1"):
        PromptSource(prompts(1), seed=0, cursor=-1)
    with pytest.raises(ValueError, match="negative"):
        PromptSource(prompts(1), seed=0).take(-1)
