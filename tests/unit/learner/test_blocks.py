"""Block masks out of segments, against those that torch makes of all pairs."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.unit.learner.layouts import make_layout
from topd_ray.learner.layout import Layout

FIELDS = [
    f"{full}{side}_{what}"
    for full in ("", "full_")
    for side in ("kv", "q")
    for what in ("num_blocks", "indices")
]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Rollouts, each with windows that branch off anywhere, over several blocks."""
    segments: list[tuple[int, int, int]] = []
    for _ in range(draw(st.integers(1, 3))):
        trunk = len(segments)
        length = draw(st.integers(1, 400))
        segments.append((length, trunk, 0))
        for _ in range(draw(st.integers(0, 3))):
            branch = draw(st.integers(1, length))
            segments.append((draw(st.integers(1, 150)), trunk, branch))
    return make_layout(*segments)


def by_torch(layout: Layout, reach: int | None) -> Any:
    length = len(layout.place_L)
    return create_block_mask(
        lambda _batch, _head, query, key: layout.sees(query, key, reach),
        B=None,
        H=None,
        Q_LEN=length,
        KV_LEN=length,
        device="cpu",
    )


def assert_same(layout: Layout, reach: int | None) -> None:
    got, want = layout.blocks(reach), by_torch(layout, reach)
    for field in FIELDS:
        assert torch.equal(getattr(got, field), getattr(want, field)), field
        assert getattr(got, field).dtype == getattr(want, field).dtype
    assert got.seq_lengths == want.seq_lengths
    assert got.BLOCK_SIZE == want.BLOCK_SIZE


@given(
    layout=layouts(), reach=st.one_of(st.none(), st.sampled_from([1, 2, 127, 128, 300]))
)
@settings(max_examples=25, deadline=None)
def test_the_blocks_are_those_that_torch_finds_among_all_pairs(
    layout: Layout, reach: int | None
) -> None:
    assert_same(layout, reach)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 384])
def test_one_rollout_of_any_length_has_them_too(length: int) -> None:
    assert_same(make_layout((length, 0, 0)), None)


def test_layouts_of_all_kinds_share_a_few_graphs() -> None:
    """Lengths become symbols one after the other; then a GPU compiles no more."""
    graphs = []
    counts = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(inputs)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(flex_attention, backend=counting)
    rng = random.Random(0)
    for number in range(20):
        length = rng.randrange(130, 300)
        branches = sorted(rng.sample(range(1, length), number % 5))
        windows = [(rng.randrange(1, 40), 0, branch) for branch in branches]
        layout = make_layout((length, 0, 0), *windows)
        size = (1, 2, len(layout.place_L), 16)
        states = [torch.zeros(size) for _ in range(3)]
        compiled(*states, block_mask=layout.blocks(), scale=0.25)
        counts.append(len(graphs))
    torch.compiler.reset()
    assert counts[5:] == [3] * 15


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


def test_no_tensor_has_an_element_for_each_pair_of_tokens() -> None:
    layout = make_layout((3000, 0, 0), (50, 0, 1000), (1046, 2, 0))
    with Largest() as made:
        layout.blocks()
    assert made.elements == 4096 * 32  # tokens x blocks
    with Largest() as made:
        by_torch(layout, None)
    assert made.elements >= 4096**2
