"""The ranks of a learner: how they meet, and how each holds its share of a model.

With ZeRO 3 a model is sharded while it is loaded: rank 0 reads a layer, sends it to the
others, and every rank keeps its share. No rank ever holds more than its shares and one
layer, so the model may be larger than a GPU, and than the memory of a machine.
"""

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import Store

from topd_ray.engines.tensors import by_layer
from topd_ray.models.weight_reader import replace_weight

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed  # reads DS_ACCELERATOR

BUCKET_ELEMENTS = 2**26
"""Elements of one reduction; DeepSpeed's 5e8 allocates gigabytes for any model."""
_WHOLE_ELEMENTS = 10_000
"""ZeRO 3 keeps a weight that is smaller (norms, biases) whole on every rank."""
ReadWeight = Callable[[str, Tensor], Tensor]
"""Name of a weight, and a tensor of its shape and dtype -> the weight, on the CPU."""


def join_ranks(store: Store, *, rank: int, world_size: int) -> None:
    """Join the process group of all ranks; waits until every rank has.

    `store`: where the ranks have met; see `engines.rendezvous`.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", r".torch\.distributed\.\w+. is deprecated", FutureWarning
    )
    # DeepSpeed needs it; a Ray actor sees only its own GPU, so the index is 0
    os.environ["LOCAL_RANK"] = "0"
    # DeepSpeed compiles the ops of this table: minutes of C++ at the first start, and
    # only inference uses them.
    deepspeed.ops.__compatible_ops__ = {}
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # DeepSpeed joins by a port alone; it takes over a group that is there.
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size
    )
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, verbose=False
    )


def shard_weights(
    model: nn.Module, read: ReadWeight, *, dtype: torch.dtype, rank: int
) -> None:
    """Load the weights of a model, which has no memory for them, as shares of ranks.

    Every rank must call it, after `join_ranks` and before `DeepSpeedTraining`.

    Args:
        model: Its weights are on the meta device; this rank's shares replace them.
        read: Reads a weight; called on rank 0 alone.
        dtype: Number format of the weights.
        rank: Index of this rank.
    """
    config = zero_config(zero_stage=3, dtype=dtype, world_size=_world_size())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for layer in by_layer(list(model.named_parameters())):
        shares = nn.ParameterList()
        for name, weight in layer:
            # The numbers of rank 0 overwrite those of the others.
            whole = read(name, weight) if rank == 0 else _room(weight, device)
            share = nn.Parameter(whole.to(device), requires_grad=weight.requires_grad)
            replace_weight(model, name, share)
            shares.append(share)
        deepspeed.zero.Init(module=shares, config_dict_or_path=config, dtype=dtype)


def zero_config(
    *, zero_stage: int, dtype: torch.dtype, world_size: int
) -> dict[str, Any]:
    """Return the part of DeepSpeed's config that says how a model is sharded."""
    config: dict[str, Any] = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {
            "stage": zero_stage,
            # DeepSpeed allows it with managed_gradient_accumulation: false for ZeRO 2
            # alone
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": _WHOLE_ELEMENTS,
        },
    }
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return config


def _room(weight: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(weight, device=device)


def _world_size() -> int:
    return torch.distributed.get_world_size()


__all__ = [
    "BUCKET_ELEMENTS",
    "ReadWeight",
    "join_ranks",
    "shard_weights",
    "zero_config",
]
