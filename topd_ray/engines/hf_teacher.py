"""A transformers model that scores and continues.

Axes: R sequences, L tokens of the longest, D width of the model.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from topd_ray.config.base import EngineConfig
from topd_ray.engines.checks import check_requests, check_sequences
from topd_ray.engines.hf import (
    batches,
    load_model,
    refuse_windowed_attention,
    replace_weights,
)
from topd_ray.engines.hf_decoding import Decoding, right_padded
from topd_ray.engines.protocols import Generation, GenerationRequest, NamedArray
from topd_ray.errors import TopdError
from topd_ray.messages import Floats, Ints
from topd_ray.models.facts import eos_ids, weight_shapes

BATCH_TOKENS = 4096
"""Tokens of one scoring pass, padding included; a longer sequence has one of its
own.
"""


class HfTeacher:
    """One model, one thread that computes: callers take turns, a pass or a generation
    at a time.
    """

    def __init__(
        self, folder: Path, engine: EngineConfig, *, max_model_len: int
    ) -> None:
        self._eos, self._shapes = eos_ids(folder), weight_shapes(folder)
        self._max_num_seqs, self._max_model_len = engine.max_num_seqs, max_model_len
        self._model = load_model(folder, engine)
        refuse_windowed_attention(folder, self._model.config)
        self._version = 0
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="teacher")

    def hidden_states(self, sequences: Sequence[Ints]) -> list[Floats]:
        """Last hidden state after the final norm of every token: one (len, D) array a
        sequence.
        """
        check_sequences(sequences, self._max_model_len)
        version, states = self._version, dict[int, Floats]()
        for batch in _by_length(sequences):
            found = self._turn(
                version, self._states, [sequences[index] for index in batch]
            )
            states |= zip(batch, found, strict=True)
        return [states[index] for index in range(len(sequences))]

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield each generation as soon as it is finished; stop iterating to abandon
        the rest.
        """
        check_requests(requests, self._max_model_len)
        return self._run(requests)

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Copy all weights into the model; ends every call under way."""

        def replace() -> None:
            replace_weights(self._model, weights, self._shapes)
            self._version += 1

        self._ask(replace).result()

    def close(self) -> None:
        """Free the model; ends every call under way."""
        self._version += 1
        self._computing.shutdown()
        self._model = None
        gc.collect()

    def _run(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        version = self._version
        for batch in batches(requests, self._max_num_seqs):
            decoding = Decoding(self._model, batch, self._eos).run()
            while generation := self._turn(version, next, decoding, None):
                yield generation

    def _turn(self, version: int, work: Callable[..., Any], *arguments: Any) -> Any:
        """What the work gives, done with the weights that its call began with."""

        def checked() -> Any:
            if version != self._version:
                raise TopdError("new weights ended this call, or the engine was closed")
            return work(*arguments)

        return self._ask(checked).result()

    def _ask(self, work: Callable[[], Any]) -> "Future[Any]":
        if self._model is None:
            raise TopdError("the engine is closed")
        return self._computing.submit(work)

    @torch.inference_mode()
    def _states(self, sequences: Sequence[Ints]) -> list[Floats]:
        # Attention is causal, so what is padded to the right needs no mask: no token
        # sees it.
        ids_RL = right_padded(sequences).to(self._model.device)
        output = self._model.base_model(ids_RL, use_cache=False)
        states_RLD: Floats = output.last_hidden_state.float().cpu().numpy()
        return [
            states_LD[: len(sequence)].copy()
            for states_LD, sequence in zip(states_RLD, sequences, strict=True)
        ]


def _by_length(sequences: Sequence[Ints]) -> Iterator[list[int]]:
    """Indices of the sequences, in batches of at most BATCH_TOKENS, the shortest
    first.
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
