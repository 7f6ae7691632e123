"""What a learner rank holds on its GPU, moved to the host and back between steps."""

import gc
from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State
from deepspeed.runtime.zero.offload_states import (
    offload_optimizer_states,
    reload_optimizer_states,
)
from torch import Tensor

from topd_ray.engines.tensors import release_cached_memory
from topd_ray.errors import TopdError

_OF_ZERO_3 = [State.lp_grads, State.contiguous_grad_buffer]
"""What DeepSpeed itself moves with ZeRO 3.

Masters and moments it moves for its own AdamW alone, and here torch's runs. Weights it
moves where all of them are trained (`State.lp_params`): beside frozen ones it would
look for these in the buffer of the others.
"""


class SleepingStates:
    """Moves the states of one DeepSpeed engine.

    DeepSpeed's own calls do it, with three differences: with ZeRO 3 the float32 weights
    and the moments of the optimizer are moved here; frozen weights are moved here,
    because DeepSpeed moves what is trained alone; and the memory is given back to the
    driver of the GPU, for the processes that share it.
    """

    def __init__(self, engine: Any, *, zero_stage: int) -> None:
        self._engine = engine
        self._zero_stage = zero_stage
        self._device = engine.device
        self._frozen = [p for p in engine.module.parameters() if not p.requires_grad]

    def offload(self) -> None:
        """Move everything that a step leaves to the host.

        Raises TopdError with ZeRO 0, where nothing could be moved.
        """
        if self._zero_stage == 0:
            raise TopdError(
                "DeepSpeed moves no states with ZeRO 0; set learner.zero_stage to 1, 2"
                " or 3"
            )
        on_gpu = self._device.type == "cuda"
        if self._zero_stage == 3:
            own = [] if self._frozen else [State.lp_params]
            self._engine.offload_states(include=[*_OF_ZERO_3, *own], pin_memory=on_gpu)
            offload_optimizer_states(self._adam, "cpu", pin_memory=on_gpu)
        else:
            self._engine.offload_states(pin_memory=on_gpu)
        for held in self._moved_here():
            held.data = _on_host(held.data)
        gc.collect()
        release_cached_memory()

    def reload(self) -> None:
        """Move it back."""
        for held in self._moved_here():
            held.data = held.data.to(self._device)
        if self._zero_stage == 3:
            reload_optimizer_states(self._adam, self._device)
        self._engine.reload_states()
        # DeepSpeed has forgotten where the moments of each weight are; it looks for
        # them again at the next step or checkpoint.
        self._engine.optimizer._hp_optimizer_states_linked = False

    @property
    def _adam(self) -> Any:
        return self._engine.optimizer.optimizer

    def _moved_here(self) -> Iterator[Tensor]:
        """Yield the tensors that DeepSpeed leaves on the GPU."""
        if self._zero_stage < 3:
            yield from self._frozen
            return
        yield from self._engine.optimizer.fp32_partitioned_groups_flat
        for weight in self._frozen:
            yield weight.ds_tensor


def _on_host(tensor: Tensor) -> Tensor:
    """Return a copy on the host, in page-locked memory where it comes from a GPU."""
    host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return host.copy_(tensor)


__all__ = ["SleepingStates"]
