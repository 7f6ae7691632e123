"""Slots against plain lists of what each request has seen so far."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topd_ray.engines.hf_slots import SlotCache, longest_extensions

PROMPTS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12
)
LAYERS, HEADS, WIDTH = 2, 2, 3


@given(PROMPTS)
def test_every_prompt_finds_one_that_begins_with_it_and_that_nothing_continues(prompts):
    found = longest_extensions([np.asarray(prompt, np.int32) for prompt in prompts])
    for prompt, index in zip(prompts, found, strict=True):
        longest = prompts[index]
        assert longest[: len(prompt)] == prompt
        assert all(
            other[: len(longest)] != longest or other == longest for other in prompts
        )


def test_equal_prompts_share_one():
    found = longest_extensions(
        [np.asarray(p, np.int32) for p in ([1, 2], [1, 2], [3], [1, 2])]
    )
    assert len(set(found[[0, 1, 3]].tolist())) == 1
    assert found[2] == 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_a_slot_holds_its_own_tokens_whoever_leaves_and_however_long_it_grows(
    lengths, seed
):
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    def states(rows: int, columns: int) -> list[torch.Tensor]:
        shape = (rows, HEADS, columns, WIDTH)
        return [torch.randn(shape, generator=generator) for _ in range(2 * LAYERS)]

    first = states(3, 9)
    row = torch.from_numpy(rng.integers(0, 3, len(lengths)))
    cache = SlotCache(row, torch.tensor(lengths))
    for layer in range(LAYERS):
        cache.update(first[2 * layer], first[2 * layer + 1], layer)
    # What each request should see, layer by layer, keys and values: (heads, tokens,
    # width).
    expected = [
        [one[r, :, :n] for one in first] for r, n in zip(row, lengths, strict=True)
    ]
    for _ in range(40):
        live = len(expected)
        new, mask = states(live, 1), cache.make_room(torch.float32)
        for slot in range(live):
            expected[slot] = [
                torch.cat([old, one[slot]], 1)
                for old, one in zip(expected[slot], new, strict=True)
            ]
        for layer in range(LAYERS):
            seen = cache.update(new[2 * layer], new[2 * layer + 1], layer)
            for slot in range(live):
                visible = mask[slot, 0, 0] == 0
                for half in range(2):
                    wanted = expected[slot][2 * layer + half]
                    assert torch.equal(seen[half][slot][:, visible], wanted)
                    assert seen[half].isfinite().all(), (
                        "masked columns are multiplied by 0"
                    )
        cache.advance()
        leaves = rng.random(live) < 0.1
        if leaves.all():
            return
        kept = cache.keep(np.flatnonzero(~leaves))
        assert sorted(kept) == np.flatnonzero(~leaves).tolist()
        expected = [expected[slot] for slot in kept]
        assert cache.length_B.tolist() == [one[0].shape[1] for one in expected]
