"""A transformers model that scores and continues, the teacher of back end hf.

Axes: R sequences, L tokens of the longest, D width of the model.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from topd_ray.config.base import EngineConfig
from topd_ray.engines.asleep import Wakefulness
from topd_ray.engines.checks import check_requests, check_sequences
from topd_ray.engines.hf import (
    batches,
    load_model,
    model_device,
    move_model,
    refuse_windowed_attention,
    replace_weights,
)
from topd_ray.engines.hf_decoding import Decoding, right_padded
from topd_ray.engines.protocols import (
    Generation,
    GenerationRequest,
    NamedArray,
    WakePart,
)
from topd_ray.errors import TopdError
from topd_ray.messages import Floats, Ints
from topd_ray.models.architecture import weight_shapes
from topd_ray.models.stop_ids import eos_ids
from topd_ray.models.vocabulary import num_ids

T = TypeVar("T")

BATCH_TOKENS = 4096
"""Most tokens of one scoring pass, padding included.

A longer sequence has a pass for itself.
"""


class HfTeacher:
    """One model and one thread that computes for all callers.

    Callers take turns: a turn is one scoring pass or the next finished generation.
    """

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
        self._version = 0
        self._wakefulness = Wakefulness()
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="teacher")

    def hidden_states(
        self, sequences: Sequence[Ints], starts: Sequence[int] | None = None
    ) -> list[Floats]:
        """See `ScoringEngine`. Without a prefix cache all of a sequence is computed."""
        self._wakefulness.require("hidden_states")
        check_sequences(sequences, self._max_model_len)
        starts = starts or [0] * len(sequences)
        version = self._version
        states = dict[int, Floats]()
        for batch in _by_length(sequences):
            chosen = [sequences[index] for index in batch]
            batch_states = self._turn(version, partial(self._states, chosen))
            states |= zip(batch, batch_states, strict=True)
        return [states[index][start:] for index, start in enumerate(starts)]

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield each finished generation; stop iterating to abandon the rest."""
        self._wakefulness.require("generate")
        check_requests(requests, self._max_model_len)
        return self._run(requests)

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Copy all weights into the model; ends every call under way."""
        self._wakefulness.require_weights("load_weights")

        def replace() -> None:
            replace_weights(self._model, weights, self._shapes)
            self._version += 1

        self._submit(replace).result()

    def sleep(self) -> None:
        """See `Sleeper`. Ends every call under way."""
        if self._wakefulness.falls_asleep():
            self._version += 1
            self._submit(partial(move_model, self._model, "cpu")).result()

    def wake(self, part: WakePart = "all") -> None:
        """See `Sleeper`. The weights are all that it holds between two calls."""
        if self._wakefulness.wakes(part):
            self._submit(partial(move_model, self._model, model_device())).result()

    def close(self) -> None:
        """Free the model; ends every call under way."""
        self._version += 1
        self._computing.shutdown()
        self._model = None
        gc.collect()

    def _run(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        version = self._version
        for batch in batches(requests, self._max_num_seqs):
            decoding = Decoding(self._model, batch, self._eos, self._num_ids).run()
            while generation := self._turn(version, partial(next, decoding, None)):
                yield generation

    def _turn(self, version: int, work: Callable[[], T]) -> T:
        """Compute with the weights that the call began with.

        Raises:
            TopdError: New weights have been loaded since, or the engine was closed.
        """

        def checked() -> T:
            if version != self._version:
                raise TopdError("new weights ended this call, or the engine was closed")
            return work()

        return self._submit(checked).result()

    def _submit(self, work: Callable[[], T]) -> "Future[T]":
        if self._model is None:
            raise TopdError("the engine is closed")
        return self._computing.submit(work)

    @torch.inference_mode()
    def _states(self, sequences: Sequence[Ints]) -> list[Floats]:
        # Attention is causal, so padding to the right needs no mask: no token sees it.
        ids_RL = right_padded(sequences).to(self._model.device)
        output = self._model.base_model(ids_RL, use_cache=False)
        states_RLD: Floats = output.last_hidden_state.float().cpu().numpy()
        return [
            states_LD[: len(sequence)].copy()
            for states_LD, sequence in zip(states_RLD, sequences, strict=True)
        ]


def _by_length(sequences: Sequence[Ints]) -> Iterator[list[int]]:
    """Yield batches of at most BATCH_TOKENS, as indices, the shortest sequences first.

    Sequences of similar lengths share a batch, which keeps the padding small.
    """
    batch: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        if batch and (len(batch) + 1) * len(sequences[index]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


__all__ = ["HfTeacher"]
