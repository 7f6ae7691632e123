"""Ranks that share a packed sequence have the losses and gradients of one rank."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.contract.learner_ranks import make_batch
from tests.tiny import make_model
from tests.unit.learner.sequence_ranks import Summed, of_four_ranks, of_one_rank
from topd_ray.learner.gaps import token_gap
from topd_ray.learner.sequence_parallel import own_part
from topd_ray.messages import TrainBatch

CASES = [(2, False), (4, False), (4, True)]
# 37 tokens, which neither 2 nor 4 divides; windows hang off rollouts of other ranks.
BATCHES = [
    make_batch([9, 14, 5], seed=1, resampled=3),
    make_batch([30], seed=2, resampled=6),
    make_batch([8, 4], seed=3),
    make_batch([3], seed=4),  # some rank of 4 has no trained position
]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four query heads and two key heads: of four ranks, two get the same."""
    folder = tmp_path_factory.mktemp("student")
    return make_model(
        folder, hidden=32, layers=2, seed=8, tied=True, heads=4, key_heads=2
    )


@pytest.fixture(scope="module")
def of_one(student: Path) -> Summed:
    return of_one_rank(student, BATCHES)


@pytest.fixture(scope="module")
def of_four(
    student: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, bool], Summed]:
    return of_four_ranks(student, BATCHES, CASES, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_ranks_that_share_sequences_have_the_gradient_of_one(
    of_one: Summed, of_four: dict[tuple[int, bool], Summed], case: tuple[int, bool]
) -> None:
    losses, gradients = of_four[case]
    torch.testing.assert_close(losses, of_one[0], rtol=1e-5, atol=1e-5)
    assert gradients.keys() == of_one[1].keys()
    for name, expected in of_one[1].items():
        # float32 sums in another order, in the units of the largest gradient
        error = (gradients[name] - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, (name, float(error))


@pytest.mark.parametrize("size", [2, 3, 4, 50])
@pytest.mark.parametrize("batch", BATCHES)
def test_every_trained_position_is_in_one_part(batch: TrainBatch, size: int) -> None:
    parts = [own_part(batch, index=index, size=size) for index in range(size)]
    length = len(parts[0].input_ids_L)
    assert length % size == 0
    assert 0 <= length - len(batch.input_ids_L) < size
    for index, part in enumerate(parts):
        assert np.array_equal(part.input_ids_L, parts[0].input_ids_L)
        assert int(part.length_S.sum()) == length
        assert set(part.position_TU // (length // size)) <= {index}
        assert part.window_Q.dtype == batch.window_Q.dtype
    _assert_same_rows(_trained(batch), *map(_trained, parts))
    _assert_same_rows(_windows(batch), *map(_windows, parts))


def _trained(batch: TrainBatch) -> np.ndarray:
    """One row for each of T: its place, token, weight and the teacher's state."""
    num_trained = len(batch.response_ids_T)
    columns = (
        batch.position_TU[:num_trained],
        batch.response_ids_T,
        batch.logp_T,
        batch.weight_T,
        batch.signal.hidden_ND.sum(1),
    )
    return np.stack(columns, 1)


def _windows(batch: TrainBatch) -> np.ndarray:
    """One row for each of Q: its place in the sequence and its soft target."""
    at = batch.position_TU[batch.window_Q]
    return np.column_stack([at, batch.target_ids_QK, batch.target_weights_QK])


def _assert_same_rows(whole: np.ndarray, *parts: np.ndarray) -> None:
    together = np.concatenate(parts)
    assert sorted(map(tuple, together)) == sorted(map(tuple, whole))


def test_marks_of_a_divergence_go_with_their_positions() -> None:
    batch = BATCHES[0]
    marks = {
        "reverse_T": np.arange(len(batch.response_ids_T)) % 2 == 0,
        "forward_T": np.arange(len(batch.response_ids_T)) % 3 == 0,
    }
    parts = [own_part(replace(batch, **marks), index=i, size=2) for i in range(2)]
    order = np.argsort(
        np.concatenate([p.position_TU[: len(p.response_ids_T)] for p in parts])
    )
    at_whole = np.argsort(batch.position_TU[: len(batch.response_ids_T)])
    for name, mark in marks.items():
        together = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(together[order], mark[at_whole])


@pytest.mark.parametrize("signal", ["topk", "sampled"])
def test_every_signal_is_cut_like_the_positions(signal: Any) -> None:
    batch = make_batch([9, 14], seed=5, signal=signal)
    parts = [own_part(batch, index=index, size=2) for index in range(2)]
    for column in fields(batch.signal):
        whole = getattr(batch.signal, column.name)
        together = [getattr(part.signal, column.name) for part in parts]
        assert np.array_equal(np.concatenate(together), whole)


def test_the_worst_gap_of_a_part_is_found_in_the_whole() -> None:
    batch = BATCHES[0]
    part = own_part(batch, index=1, size=2)
    gap = token_gap(part, 3, -1.0)
    (at,) = np.flatnonzero(batch.position_TU == part.position_TU[3])
    assert gap == token_gap(batch, int(at), -1.0)
