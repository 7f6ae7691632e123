"""Checkpoints of AdamW that do not depend on the number of ranks or the ZeRO stage.

Every weight is stored whole in float32 under its name, and so are both of its moments:
a checkpoint of two ranks can be loaded by one, one of ZeRO 2 by ZeRO 3. Each rank
writes a part. The files are safetensors: DeepSpeed's own checkpoints are pickles, and a
pickle executes code when it is read.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from topd_ray.engines.tensors import whole_shape
from topd_ray.errors import TopdError

_MASTER = "weight"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_FACTS = "optimizer.json"
_FILE_BYTES = 2**31
"""About the size of a file: a rank holds so much in memory while it writes."""

Named = Mapping[str, nn.Parameter]


class AdamState:
    """Weights and moments of one DeepSpeed engine; every rank must call each method."""

    def __init__(self, engine: Any, weights: Named, *, zero_stage: int) -> None:
        self._optimizer = engine.optimizer
        self._weights = weights
        self._zero_stage = zero_stage

    def save(
        self, directory: Path, *, num_updates: int, rank: int, world_size: int
    ) -> None:
        """Write this rank's share of the weights; rank 0 also writes the counters."""
        directory.mkdir(parents=True, exist_ok=True)
        self._make_room()
        held = dict[str, Tensor]()
        held_bytes = 0
        number = 0
        for index, (name, weight) in enumerate(self._weights.items()):
            for part in (_MASTER, *_MOMENTS):
                whole = self._whole(weight, part)
                if index % world_size == rank:
                    held[f"{part}/{name}"] = (
                        whole.detach().float().cpu().contiguous().clone()
                    )
                    held_bytes += whole.numel() * 4
            if held_bytes >= _FILE_BYTES:
                save_file(held, directory / _file(rank, number))
                held = {}
                held_bytes = 0
                number += 1
        if held:
            save_file(held, directory / _file(rank, number))
        if rank == 0:
            facts = {"num_updates": num_updates, "adam_steps": self._adam_steps()}
            (directory / _FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")

    def load(self, directory: Path) -> int:
        """Restore all that `save` wrote; return its `num_updates`.

        Raises:
            TopdError: There is no checkpoint, or it is of another student.
        """
        try:
            facts = json.loads((directory / _FACTS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TopdError(
                f"{directory}: no learner checkpoint there ({error})"
            ) from None
        files = _index(directory)
        self._make_room()
        for name, weight in self._weights.items():
            for part in (_MASTER, *_MOMENTS):
                self._set(
                    weight, part, _read(files, f"{part}/{name}", weight, directory)
                )
        for state in self._states():
            state["step"].fill_(facts["adam_steps"])
        return int(facts["num_updates"])

    def _whole(self, weight: nn.Parameter, part: str) -> Tensor:
        if self._zero_stage == 0:
            return weight if part == _MASTER else self._optimizer.state[weight][part]
        whole: Tensor = (
            safe_get_full_fp32_param(weight)
            if part == _MASTER
            else safe_get_full_optimizer_state(weight, part)
        )
        return whole

    def _set(self, weight: nn.Parameter, part: str, value: Tensor) -> None:
        value = value.to(weight.device)
        if part == _MASTER:
            with _gathered(weight, self._zero_stage), torch.no_grad():
                weight.copy_(value)
            if self._zero_stage:
                safe_set_full_fp32_param(weight, value)
        elif self._zero_stage == 0:
            self._optimizer.state[weight][part].copy_(value)
        else:
            safe_set_full_optimizer_state(weight, value, part)

    def _masters(self) -> list[Tensor]:
        """Return the tensors that AdamW updates: shards of the weights, or weights."""
        if self._zero_stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        if self._zero_stage:
            return list(self._optimizer.single_partition_of_fp32_groups)
        return list(self._weights.values())

    def _states(self) -> Iterator[dict[str, Any]]:
        adam = self._optimizer.optimizer if self._zero_stage else self._optimizer
        for master in self._masters():
            yield adam.state[master]

    def _adam_steps(self) -> float:
        return max(float(state["step"]) for state in self._states())

    def _make_room(self) -> None:
        """Create the moments, of zeros.

        AdamW creates them at its first step; `save` and `load` may come before.
        """
        for master, state in zip(self._masters(), self._states(), strict=True):
            if not state:
                # beside the weights: the fused AdamW of a GPU reads it there
                state["step"] = torch.zeros((), device=master.device)
                for part in _MOMENTS:
                    state[part] = torch.zeros_like(master)
        if self._zero_stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()


def _gathered(weight: nn.Parameter, zero_stage: int) -> Any:
    return deepspeed.zero.GatheredParameters(
        [weight], modifier_rank=0, enabled=zero_stage == 3
    )


def _file(rank: int, number: int) -> str:
    return f"adam-{rank:04d}-{number:04d}.safetensors"


def _index(directory: Path) -> dict[str, Path]:
    """Return the file of each tensor."""
    files = dict[str, Path]()
    for file in sorted(directory.glob("adam-*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            files |= dict.fromkeys(tensors.keys(), file)
    return files


def _read(
    files: Mapping[str, Path], key: str, weight: nn.Parameter, directory: Path
) -> Tensor:
    if key not in files:
        raise TopdError(f"{directory}: holds no {key}; it is of another student")
    with safe_open(files[key], framework="pt") as tensors:
        value: Tensor = tensors.get_tensor(key)
    shape = whole_shape(weight)
    if tuple(value.shape) != shape:
        raise TopdError(
            f"{directory}: {key} is {tuple(value.shape)}, the student's is {shape}; it"
            " is of another student"
        )
    return value


__all__ = ["AdamState"]
