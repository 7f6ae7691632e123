"""Real processes that share packed sequences, over gloo."""

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tests.tiny import VOCAB
from tests.unit.learner.models import make
from topd_ray.learner.inputs import forward_inputs
from topd_ray.learner.model import DistillationModel
from topd_ray.learner.sequence_parallel import open_sequence_group, own_part
from topd_ray.messages import TrainBatch

NUM_RANKS = 4
DEADLINE_S = 120
Case = tuple[int, bool]
"""Ranks that share a sequence; whether activations are recomputed."""
Summed = tuple[Tensor, dict[str, Tensor]]
"""Losses and gradients, summed over micro-batches (and ranks)."""


def of_one_rank(folder: Path, batches: Sequence[TrainBatch]) -> Summed:
    return _summed(make(folder), batches)


def of_four_ranks(
    folder: Path, batches: Sequence[TrainBatch], cases: Sequence[Case], scratch: Path
) -> dict[Case, Summed]:
    """Return what rank 0 has of each case, summed over all ranks.

    A server that has imported torch forks the ranks: each alone would take seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    arguments = (folder, batches, cases, scratch)
    ranks = [
        context.Process(target=_rank_main, args=(rank, *arguments))
        for rank in range(NUM_RANKS)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(DEADLINE_S)
        if rank.is_alive():
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0] * NUM_RANKS
    summed: dict[Case, Summed] = torch.load(scratch / "summed.pt")
    return summed


def _rank_main(
    rank: int,
    folder: Path,
    batches: Sequence[TrainBatch],
    cases: Sequence[Case],
    scratch: Path,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{scratch}/meet", rank=rank, world_size=NUM_RANKS
    )
    summed: dict[Case, Summed] = {}
    for size, gradient_checkpointing in cases:
        model = make(
            folder, gradient_checkpointing=gradient_checkpointing, splits_sequences=True
        )
        group = open_sequence_group(rank, num_ranks=NUM_RANKS, size=size)
        model.sequence_group = group
        num_groups = NUM_RANKS // size
        own = [
            own_part(batch, index=group.index, size=size)
            for batch in batches[rank // size :: num_groups]
        ]
        losses, gradients = _summed(model, own)
        for tensor in (losses, *gradients.values()):
            dist.all_reduce(tensor)
        summed[size, gradient_checkpointing] = losses, gradients
    if rank == 0:
        torch.save(summed, scratch / "summed.pt")
    dist.destroy_process_group()


def _summed(model: DistillationModel, batches: Sequence[TrainBatch]) -> Summed:
    losses = torch.zeros(6, dtype=torch.float64)
    for batch in batches:
        total, *others = model(*forward_inputs(batch, num_ids=len(VOCAB)))
        total.backward()
        # the last two are the worst gap, which is no sum
        losses += torch.stack([x.detach().double() for x in (total, *others[:-2])])
    gradients = {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }
    return losses, gradients
