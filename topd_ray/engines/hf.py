"""transformers, the back end for machines without vLLM and for small models on CPU."""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from topd_ray.config.base import EngineConfig
from topd_ray.engines.asleep import Wakefulness
from topd_ray.engines.checks import ENDED, check_requests, whole_weights
from topd_ray.engines.hf_decoding import Decoding
from topd_ray.engines.hf_slots import longest_extensions
from topd_ray.engines.protocols import (
    Generation,
    GenerationRequest,
    NamedArray,
    Progress,
    WakePart,
)
from topd_ray.engines.tensors import release_cached_memory, view_as_torch
from topd_ray.errors import TopdError, UserError
from topd_ray.models.architecture import load_causal_lm, weight_shapes
from topd_ray.models.checkpoint_names import CheckpointNames
from topd_ray.models.facts import Shapes
from topd_ray.models.stop_ids import eos_ids
from topd_ray.models.vocabulary import num_ids


class HfGeneration:
    """Decodes `max_num_seqs` requests at a time, those of similar prompts together."""

    def __init__(
        self, folder: Path, engine: EngineConfig, *, max_model_len: int
    ) -> None:
        self._eos = eos_ids(folder)
        self._num_ids = num_ids(folder)
        self._shapes = weight_shapes(folder)
        self._max_num_seqs = engine.max_num_seqs
        self._max_model_len = max_model_len
        self._model = load_model(folder, engine)
        refuse_windowed_attention(folder, self._model.config)
        self._turn = 0
        self._wakefulness = Wakefulness()

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield each finished generation; a later call ends an earlier one."""
        return self._one_by_one(self.generate_in_pieces(requests, stride=0, cuts={}))

    def generate_in_pieces(
        self,
        requests: Sequence[GenerationRequest],
        *,
        stride: int,
        cuts: Mapping[str, int],
    ) -> Iterator[list[Progress | Generation]]:
        """See `RolloutEngine`; a stride of 0 shows no progress."""
        self._wakefulness.require("generate")
        check_requests(requests, self._max_model_len)
        return self._run(requests, stride, cuts)

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Copy all weights into the model; there is no cache to drop."""
        self._wakefulness.require_weights("load_weights")
        replace_weights(self._model, weights, self._shapes)
        self._turn += 1

    def sleep(self) -> None:
        """See `Sleeper`."""
        if self._wakefulness.falls_asleep():
            self._turn += 1
            move_model(self._model, "cpu")

    def wake(self, part: WakePart = "all") -> None:
        """See `Sleeper`. The weights are all that it holds between two calls."""
        if self._wakefulness.wakes(part):
            move_model(self._model, model_device())

    def close(self) -> None:
        """Free the model."""
        self._model = None
        gc.collect()

    def _run(
        self,
        requests: Sequence[GenerationRequest],
        stride: int,
        cuts: Mapping[str, int],
    ) -> Iterator[list[Progress | Generation]]:
        self._turn += 1
        turn = self._turn
        for batch in batches(requests, self._max_num_seqs):
            decoding = Decoding(self._model, batch, self._eos, self._num_ids)
            for outputs in decoding.run_in_pieces(stride=stride, cuts=cuts):
                yield outputs
                if turn != self._turn:
                    raise TopdError(ENDED)

    def _one_by_one(
        self, pieces: Iterator[list[Progress | Generation]]
    ) -> Iterator[Generation]:
        for outputs in pieces:
            turn = self._turn
            for output in outputs:
                if isinstance(output, Generation):
                    yield output
                if turn != self._turn:
                    raise TopdError(ENDED)


def batches(
    requests: Sequence[GenerationRequest], max_num_seqs: int
) -> Iterator[list[GenerationRequest]]:
    """Yield batches of requests, those with short prompts first.

    Prompts with a common beginning are neighbours, because a batch reads it once.
    """
    prompts = [request.prompt_ids for request in requests]
    family = longest_extensions(prompts).tolist()
    order = sorted(
        range(len(prompts)), key=lambda i: (len(prompts[family[i]]), family[i], i)
    )
    for start in range(0, len(order), max_num_seqs):
        yield [requests[index] for index in order[start : start + max_num_seqs]]


def load_model(folder: Path, engine: EngineConfig) -> Any:
    """Return the model in the engine's dtype, on the GPU where there is one."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[engine.dtype]
    return load_causal_lm(folder, dtype=dtype).to(model_device()).eval()


def model_device() -> str:
    """Return where models compute."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def move_model(model: Any, device: str) -> None:
    """Move a model, and give the memory of a GPU that it leaves back to the driver."""
    model.to(device)
    release_cached_memory()


def refuse_windowed_attention(folder: Path, config: Any) -> None:
    """Raise UserError for a model with sliding windows.

    `SlotCache` keeps every token of every layer, so such a layer would see too many.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UserError(
            f"{folder}: has layers of {', '.join(sorted(kinds - {'full_attention'}))},"
            " which backend hf cannot decode; set backend=vllm"
        )


def replace_weights(model: Any, weights: Iterable[NamedArray], shapes: Shapes) -> None:
    """Copy whole weights into the model, in its dtype; all or none.

    Raises:
        WeightsError: A weight is missing, unknown or of another shape.
    """
    whole = dict(whole_weights(weights, shapes))
    names = CheckpointNames(model)
    with torch.no_grad():
        for parameter, held in model.named_parameters():
            if parameter in whole:
                held.copy_(view_as_torch(whole[parameter]))
                continue
            # transformers holds the experts of a layer in one weight.
            numbers = held.view(-1)
            for name, places in names.places(parameter, held):
                array = view_as_torch(whole[name])
                numbers[places.view(-1)] = array.reshape(-1).to(held.dtype)


__all__ = [
    "HfGeneration",
    "batches",
    "load_model",
    "model_device",
    "move_model",
    "refuse_windowed_attention",
    "replace_weights",
]
