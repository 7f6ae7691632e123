"""DeepSpeed behind `TrainingEngine`: sharding, accumulation and AdamW.

Gradients are sums. DeepSpeed averages over ranks and would average over micro-batches;
here the caller owns the accumulation (`managed_gradient_accumulation: false`), nothing
is divided in the backward pass, and the step divides once, by normaliser / world size.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# First: it says which accelerator DeepSpeed is to take.
from topd_ray.engines.deepspeed_ranks import BUCKET_ELEMENTS, zero_config

import deepspeed  # isort: skip
import deepspeed.comm as dist  # isort: skip

from topd_ray.engines.adapters import Adapter, outgoing_weights
from topd_ray.engines.asleep import Wakefulness
from topd_ray.engines.deepspeed_gradient import GlobalNorm, keep_to_one_rank
from topd_ray.engines.deepspeed_sleep import SleepingStates
from topd_ray.engines.deepspeed_state import AdamState
from topd_ray.engines.protocols import NamedArray, OptimizerOutcome, WeightFact
from topd_ray.engines.tensors import by_layer, whole_shape
from topd_ray.models.checkpoint_names import CheckpointNames

_ADAMW = {"torch_adam": True, "fused": True}
"""torch's AdamW in one pass over weights, gradients and moments.

The loop of separate operations allocates two more copies of the weights on a CPU, and
reads memory four times as often.
"""
_TAG = "learner"
"""Name of the folder inside a checkpoint."""


class DeepSpeedTraining:
    """One data-parallel rank; its constructor waits until all ranks have joined."""

    def __init__(
        self,
        module: nn.Module,
        *,
        trained: nn.Module,
        zero_stage: int,
        dtype: torch.dtype,
        lr: float,
        lr_factor: Callable[[int], float],
        betas: tuple[float, float],
        weight_decay: float,
        clip: float,
        rank: int,
        world_size: int,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        """Shard the module over the ranks, which `join_ranks` has brought together.

        What `shard_weights` has sharded before stays so.

        In bfloat16 the weights, gradients and moments of the optimizer are float32, and
        ZeRO 0 and 1 run as 2.

        Args:
            module: Its forward pass returns a tuple that begins with the loss.
            trained: The part of `module` whose names the weights have; may be `module`.
            zero_stage: 0 shards nothing, 1 the optimizer, 2 also gradients, 3 also
                weights.
            dtype: Format of the forward and backward pass.
            lr: Peak learning rate.
            lr_factor: Maps the number of updates made to the share of `lr` of the next.
            betas: Decay rates of AdamW's moments.
            weight_decay: Decoupled weight decay.
            clip: Largest global norm of the normalised gradient.
            rank: Index of this rank.
            world_size: Number of ranks.
            adapters: The adapters of a student whose weights are frozen, by the names
                of these weights; by default it has none.
        """
        self._outgoing = {
            weight.name: weight for weight in outgoing_weights(trained, adapters or {})
        }
        self._names = CheckpointNames(trained)
        self._world_size = world_size
        self._rank = rank
        self._lr = lr
        self._lr_factor = lr_factor
        self._clip = clip
        # Below ZeRO 2, DeepSpeed's bfloat16 optimizer with float32 gradients takes no
        # divisor.
        self._zero_stage = max(zero_stage, 2) if dtype == torch.bfloat16 else zero_stage
        self._num_updates = 0
        self._engine: Any
        self._engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=[p for p in module.parameters() if p.requires_grad],
            config={
                **zero_config(
                    zero_stage=self._zero_stage, dtype=dtype, world_size=world_size
                ),
                **_step_config(
                    optimizer={
                        "lr": lr,
                        "betas": list(betas),
                        "weight_decay": weight_decay,
                    },
                    # with ZeRO 0, _step_whole clips
                    clip=clip if self._zero_stage > 0 else 0.0,
                ),
            },
        )
        # DeepSpeed leaves the tables of a model that was sharded before where they are.
        for table in module.buffers():
            table.data = table.data.to(self._engine.device)
        # With ZeRO 0 the step reduces, once, not every backward pass: see _step_whole.
        self._engine.enable_backward_allreduce = self._zero_stage > 0
        if self._zero_stage > 0:
            self._norm = GlobalNorm(self._engine.optimizer, zero_stage=self._zero_stage)
        if self._zero_stage == 2 and dtype == torch.bfloat16 and world_size == 1:
            keep_to_one_rank(self._engine.optimizer)
        self._state = AdamState(
            self._engine,
            {n: p for n, p in trained.named_parameters() if p.requires_grad},
            zero_stage=self._zero_stage,
        )
        self._sleeping = SleepingStates(self._engine, zero_stage=self._zero_stage)
        self._wakefulness = Wakefulness()

    def accumulate(self, *inputs: Tensor | bool) -> tuple[float, ...]:
        """See `TrainingEngine`. Tensors are moved to the engine's device."""
        self._wakefulness.require("accumulate")
        device = self._engine.device
        outputs = self._engine(
            *(x.to(device) if isinstance(x, Tensor) else x for x in inputs)
        )
        self._engine.backward(outputs[0], scale_wrt_gas=False)
        return tuple(torch.stack([x.detach().double() for x in outputs]).tolist())

    def all_sum(self, values: Sequence[float]) -> tuple[float, ...]:
        """See `TrainingEngine`."""
        sums = torch.tensor(values, dtype=torch.float64, device=self._engine.device)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def all_max(self, value: int) -> int:
        """See `TrainingEngine`."""
        largest = torch.tensor([value], dtype=torch.int64, device=self._engine.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest.item())

    def drop_gradient(self) -> None:
        """See `TrainingEngine`."""
        self._wakefulness.require("drop_gradient")
        if self._zero_stage == 0:
            self._engine.zero_grad()
        else:
            # The sharded optimizers keep the gradient in buffers that a step alone
            # clears; a skipped step clears them all and moves nothing.
            self._step_sharded(divisor=1.0, skip=True)

    def step(self, *, normaliser: int, skip: bool = False) -> OptimizerOutcome:
        """See `TrainingEngine`. A skipped step does not move the learning rate."""
        self._wakefulness.require("step")
        lr = self._lr * self._lr_factor(self._num_updates)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        # DeepSpeed has divided the gradient by the world size already.
        divisor = normaliser / self._world_size
        step = self._step_whole if self._zero_stage == 0 else self._step_sharded
        grad_norm = step(divisor, skip)
        skipped = not math.isfinite(grad_norm)
        self._num_updates += not skipped
        return OptimizerOutcome(grad_norm=grad_norm, lr=lr, skipped=skipped)

    def weights(self) -> Iterator[NamedArray]:
        """See `TrainingEngine`."""
        for name, weight in self.tensors():
            array = _to_numpy(weight) if self._rank == 0 else np.empty(0, np.float32)
            yield name, array

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See `WeightSource`. Names are those of the files of `trained`; tied weights
        come once, adapters merged.
        """
        self._wakefulness.require("tensors")
        named = ((name, outgoing.weight) for name, outgoing in self._outgoing.items())
        for layer in by_layer(named):
            weights = [self._outgoing[name] for name, _ in layer]
            with self._whole(*chain.from_iterable(weight.parts for weight in weights)):
                for weight in weights:
                    yield from self._names.of(weight.name, weight.value())

    def facts(self) -> list[WeightFact]:
        """See `WeightSource`."""
        return [
            WeightFact(name=name, dtype=_dtype_name(empty), shape=tuple(empty.shape))
            for outgoing in self._outgoing.values()
            for name, empty in self._names.of(
                outgoing.name, _without_memory(outgoing.weight)
            )
        ]

    def whole(self, weight: Tensor) -> Tensor:
        """Return a copy of one weight, whole, on every rank; every rank must call
        it.
        """
        self._wakefulness.require("whole")
        with self._whole(weight):
            return weight.detach().clone()

    def save(self, directory: Path) -> None:
        """See `TrainingEngine`. All ranks must call it, on a shared file system."""
        self._wakefulness.require("save")
        self._state.save(
            directory / _TAG,
            num_updates=self._num_updates,
            rank=self._rank,
            world_size=self._world_size,
        )

    def load(self, directory: Path) -> None:
        """See `TrainingEngine`. The ZeRO stage may differ too."""
        self._wakefulness.require("load")
        self._num_updates = self._state.load(directory / _TAG)

    def sleep(self) -> None:
        """See `TrainingEngine`."""
        if self._wakefulness.falls_asleep():
            self._sleeping.offload()

    def wake(self) -> None:
        """See `TrainingEngine`."""
        if self._wakefulness.wakes("all"):
            self._sleeping.reload()

    def close(self) -> None:
        """See `TrainingEngine`."""
        self._engine.destroy()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _step_sharded(self, divisor: float, skip: bool) -> float:
        """ZeRO 1-3: DeepSpeed reduces, divides, clips, and drops what is not finite."""
        optimizer = self._engine.optimizer
        # The step divides by the loss scale before it clips.
        optimizer.override_loss_scale(divisor)
        self._norm.drops = skip
        self._engine.step()
        self._norm.drops = False
        # Otherwise the next backward pass would multiply the loss by the scale.
        optimizer.custom_loss_scaler = False
        # infinite where DeepSpeed has dropped the gradient
        return float(self._engine.get_global_grad_norm())

    def _step_whole(self, divisor: float, skip: bool) -> float:
        """ZeRO 0: DeepSpeed reduces and updates; this method divides, clips and skips.

        DeepSpeed would take a gradient that is not finite.
        """
        if self._world_size > 1:
            self._engine.buffered_allreduce_fallback(
                elements_per_buffer=BUCKET_ELEMENTS
            )
        weights = [p for p in self._engine.module.parameters() if p.grad is not None]
        for weight in weights:
            weight.grad.div_(divisor)
        grad_norm = float(nn.utils.clip_grad_norm_(weights, self._clip))
        if skip or not math.isfinite(grad_norm):
            self._engine.zero_grad()
            return math.inf
        self._engine.step()
        return grad_norm

    def _whole(self, *weights: Tensor) -> AbstractContextManager[Any]:
        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            list(weights), enabled=self._zero_stage == 3
        )
        return gathered


def _step_config(*, optimizer: Mapping[str, Any], clip: float) -> dict[str, Any]:
    """Return the part of DeepSpeed's config about gradients and their steps."""
    return {
        "managed_gradient_accumulation": False,
        "gradient_clipping": clip,
        "optimizer": {"type": "AdamW", "params": {**optimizer, **_ADAMW}},
        "zero_force_ds_cpu_optimizer": False,
        # sums over ranks are as exact as those over micro-batches
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
    }


def _without_memory(weight: Tensor) -> Tensor:
    """Return a tensor of the weight's whole shape and dtype on the meta device."""
    return torch.empty(whole_shape(weight), dtype=weight.dtype, device="meta")


def _dtype_name(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


def _to_numpy(weight: Tensor) -> NDArray[Any]:
    """Return a copy: the next step changes the weights in place."""
    tensor = weight.detach().to("cpu", copy=True)
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


__all__ = ["DeepSpeedTraining"]
