"""What a learner rank holds on its GPU, moved to the host and back between steps."""

import gc
from typing import Any

from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State
from deepspeed.runtime.zero.offload_states import (
    offload_optimizer_states,
    reload_optimizer_states,
)

from topd_ray.engines.tensors import release_cached_memory
from topd_ray.errors import TopdError

_SHARDS_OF_ZERO_3 = [
    State.lp_params,
    State.lp_grads,
    State.contiguous_grad_buffer,
]
"""What DeepSpeed itself moves with ZeRO 3: masters and moments it moves for its own
AdamW alone, and here torch's runs."""


class SleepingStates:
    """Moves the states of one DeepSpeed engine.

    DeepSpeed's own calls do it, with two differences: with ZeRO 3 the float32 weights
    and the moments of the optimizer are moved here, and the memory is given back to
    the driver of the GPU, for the processes that share it.
    """

    def __init__(self, engine: Any, *, zero_stage: int) -> None:
        self._engine = engine
        self._zero_stage = zero_stage
        self._device = engine.device

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
            self._engine.offload_states(include=_SHARDS_OF_ZERO_3, pin_memory=on_gpu)
            self._move_masters("cpu")
            offload_optimizer_states(self._adam, "cpu", pin_memory=on_gpu)
        else:
            self._engine.offload_states(pin_memory=on_gpu)
        gc.collect()
        release_cached_memory()

    def reload(self) -> None:
        """Move it back."""
        if self._zero_stage == 3:
            self._move_masters(self._device)
            reload_optimizer_states(self._adam, self._device)
        self._engine.reload_states()
        # DeepSpeed has forgotten where the moments of each weight are; it looks for
        # them again at the next step or checkpoint.
        self._engine.optimizer._hp_optimizer_states_linked = False

    @property
    def _adam(self) -> Any:
        return self._engine.optimizer.optimizer

    def _move_masters(self, device: Any) -> None:
        for master in self._engine.optimizer.fp32_partitioned_groups_flat:
            master.data = master.data.to(device)


__all__ = ["SleepingStates"]
