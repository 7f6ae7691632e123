"""A student that is loaded as shares of two real ranks, against one that is whole."""

import multiprocessing
import socket
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch

from tests.contract.learner_ranks import RANK_DEADLINE_S, meeting
from tests.live_tensors import Peak
from tests.tiny import make_experts, make_model
from topd_ray.engines.deepspeed_ranks import join_ranks, shard_weights
from topd_ray.engines.rendezvous import open_listener
from topd_ray.learner.model import load_student

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.distributed"),
]
LAYERS = 16
STUDENTS = ("tied", "untied", "experts", "bfloat16")
Loaded = dict[str, Any]
"""Of one rank: `peak` and `held` in bytes, `weights` and `tables` by name."""


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    sizes: dict[str, Any] = {"hidden": 64, "layers": LAYERS, "seed": 6}
    untied = make_model(folder / "untied", tied=False, **sizes)
    return {
        "tied": make_model(folder / "tied", tied=True, **sizes),
        "untied": untied,
        "experts": make_experts(folder / "experts"),
        "bfloat16": untied,
    }


@pytest.fixture(scope="module")
def loaded(students, tmp_path_factory) -> dict[str, list[Loaded]]:
    """What each of the two ranks holds of each student."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    listener = open_listener("127.0.0.1")
    ranks = [
        context.Process(target=_rank_main, args=(rank, students, listener, folder))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    listener.close()
    for rank in ranks:
        rank.join(RANK_DEADLINE_S)
        if rank.is_alive():
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)]
        for name in students
    }


def _rank_main(
    rank: int, students: dict[str, Path], listener: socket.socket, folder: Path
) -> None:
    torch.set_num_threads(1)
    join_ranks(meeting(rank, listener, world_size=2), rank=rank, world_size=2)
    for name, student in students.items():
        torch.save(_loaded(rank, student, _dtype(name)), folder / f"{name}-{rank}.pt")


def _dtype(name: str) -> torch.dtype:
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _loaded(rank: int, folder: Path, dtype: torch.dtype) -> Loaded:
    shard = partial(shard_weights, dtype=dtype, rank=rank)
    with Peak() as seen:
        student = load_student(
            folder, dtype=dtype, gradient_checkpointing=False, shard=shard
        )
    shares = [weight.ds_tensor for weight in student.parameters()]
    weights = {}
    for name, weight in student.named_parameters():
        with deepspeed.zero.GatheredParameters([weight]):
            weights[name] = weight.detach().clone()
    return {
        "peak": seen.peak,
        "held": sum(share.nbytes for share in shares),
        "weights": weights,
        "tables": dict(student.named_buffers()),
    }


@pytest.mark.parametrize("name", STUDENTS)
def test_the_shares_together_are_the_weights_of_the_files(students, loaded, name):
    whole = load_student(
        students[name], dtype=_dtype(name), gradient_checkpointing=False
    )
    for rank in loaded[name]:
        for what, tensors in (
            ("weights", dict(whole.named_parameters())),
            ("tables", dict(whole.named_buffers())),
        ):
            assert rank[what].keys() == tensors.keys()
            for key, tensor in tensors.items():
                assert rank[what][key].dtype == tensor.dtype, key
                assert torch.equal(rank[what][key], tensor), key


@pytest.mark.parametrize("name", ["tied", "untied", "bfloat16"])
def test_no_rank_ever_holds_more_than_its_share_and_a_layer(loaded, name):
    for rank in loaded[name]:
        whole = sum(weight.nbytes for weight in rank["weights"].values())
        layer = sum(
            weight.nbytes
            for key, weight in rank["weights"].items()
            if key.startswith("model.layers.0.")
        )
        assert rank["held"] == pytest.approx(whole / 2, rel=0.01)
        # A layer that was read, and the copy of a weight of it that is sent.
        assert rank["peak"] < rank["held"] + 1.5 * layer
        assert rank["peak"] < 0.65 * whole
