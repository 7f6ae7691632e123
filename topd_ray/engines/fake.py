"""A fake model without torch, for tests: a hash of the tokens so far decides all.

It keeps the contract of a real engine: the same prefix gives the same distribution,
greedy or sampled, together with any other requests; new weights give another model.
`top_p` and `top_k` have no effect.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from topd_ray.engines.asleep import Wakefulness
from topd_ray.engines.checks import ENDED, check_requests, check_sequences
from topd_ray.engines.protocols import (
    Generation,
    GenerationRequest,
    NamedArray,
    Progress,
    WakePart,
)
from topd_ray.errors import TopdError
from topd_ray.messages import PAD, Floats, Ints
from topd_ray.models.facts import read_facts
from topd_ray.models.stop_ids import eos_ids
from topd_ray.models.vocabulary import num_ids

EOS_PROBABILITY = 0.05
"""At every position: responses of 20 tokens on average, of any length."""
SHARPNESS = 2.0
"""Spread of the logits of all other tokens."""


class FakeGeneration:
    """Decodes the fake model; finishes requests in order of their length."""

    def __init__(self, folder: Path, *, max_model_len: int) -> None:
        self._vocab = num_ids(folder)
        self._eos = eos_ids(folder)
        self._max_model_len = max_model_len
        self._salt = 0
        self._turn = 0
        self._wakefulness = Wakefulness()

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield the generations, the shortest first."""
        self._wakefulness.require("generate")
        check_requests(requests, self._max_model_len)
        self._turn += 1
        return iter(
            sorted(map(self._decode, requests), key=lambda g: len(g.token_ids_N))
        )

    def generate_in_pieces(
        self,
        requests: Sequence[GenerationRequest],
        *,
        stride: int,
        cuts: Mapping[str, int],
    ) -> Iterator[list[Progress | Generation]]:
        """See `RolloutEngine`; all requests advance side by side."""
        live = {answer.request_id: answer for answer in self.generate(requests)}
        turn = self._turn
        num_tokens = 0
        while live:
            num_tokens += stride
            outputs = [_so_far(a, num_tokens, cuts) for a in live.values()]
            for output in outputs:
                if isinstance(output, Generation):
                    del live[output.request_id]
            yield outputs
            if turn != self._turn:
                raise TopdError(ENDED)

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Become another model, which the bytes of the weights decide."""
        self._wakefulness.require_weights("load_weights")
        self._salt = _salt(weights)

    def sleep(self) -> None:
        """See `Sleeper`."""
        self._wakefulness.falls_asleep()

    def wake(self, part: WakePart = "all") -> None:
        """See `Sleeper`."""
        self._wakefulness.wakes(part)

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _decode(self, request: GenerationRequest) -> Generation:
        noise = np.random.default_rng(request.seed)
        state = _hash(request.prompt_ids, self._salt)
        tokens: list[int] = []
        logp_NV: list[NDArray[np.float64]] = []
        while len(tokens) < request.max_tokens and not (
            tokens and tokens[-1] in self._eos
        ):
            logp_V = self._distribution(state)
            gumbel_V = noise.gumbel(size=self._vocab) * request.temperature
            tokens.append(int((logp_V + gumbel_V).argmax()))
            logp_NV.append(logp_V)
            state = _hash(np.asarray(tokens[-1:], np.int32), state)
        return _generation(
            request, np.asarray(tokens, np.int32), np.asarray(logp_NV), self._eos
        )

    def _distribution(self, state: int) -> NDArray[np.float64]:
        logits_V: NDArray[np.float64] = SHARPNESS * np.random.default_rng(
            state
        ).standard_normal(self._vocab)
        logits_V[list(self._eos)] = -np.inf
        logits_V -= np.log(np.exp(logits_V).sum()) - np.log1p(-EOS_PROBABILITY)
        logits_V[list(self._eos)] = np.log(EOS_PROBABILITY / len(self._eos))
        return logits_V


class FakeTeacher(FakeGeneration):
    """Decodes and scores; hidden states are noise that the tokens so far decide."""

    def __init__(self, folder: Path, *, max_model_len: int) -> None:
        super().__init__(folder, max_model_len=max_model_len)
        self._width = read_facts(folder).hidden_size

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield the generations, the shortest first."""
        by_id = {request.request_id: request for request in requests}
        for answer in super().generate(requests):
            yield self._with_states(by_id[answer.request_id], answer)

    def hidden_states(
        self, sequences: Sequence[Ints], starts: Sequence[int] | None = None
    ) -> list[Floats]:
        """See `ScoringEngine`."""
        self._wakefulness.require("hidden_states")
        check_sequences(sequences, self._max_model_len)
        return [
            self._states(sequence)[start:]
            for sequence, start in zip(
                sequences, starts or [0] * len(sequences), strict=True
            )
        ]

    def _with_states(
        self, request: GenerationRequest, answer: Generation
    ) -> Generation:
        if not request.states:
            return answer
        read = np.concatenate([request.prompt_ids, answer.token_ids_N[:-1]])
        return replace(
            answer, states_ND=self._states(read)[len(request.prompt_ids) - 1 :]
        )

    def _states(self, sequence: Ints) -> Floats:
        state = self._salt
        states = []
        for index in range(len(sequence)):
            state = _hash(sequence[index : index + 1], state)
            states.append(np.random.default_rng(state).standard_normal(self._width))
        return np.asarray(states, np.float32)


def _so_far(
    answer: Generation, num_tokens: int, cuts: Mapping[str, int]
) -> Progress | Generation:
    """Return what a request has come to after so many tokens."""
    cut = cuts.get(answer.request_id)
    length = len(answer.token_ids_N)
    if length <= num_tokens:
        return answer
    if cut is not None and cut <= num_tokens:
        return replace(
            answer,
            token_ids_N=answer.token_ids_N[:cut],
            logp_N=answer.logp_N[:cut],
            top_ids_NM=answer.top_ids_NM[:cut],
            top_logp_NM=answer.top_logp_NM[:cut],
            finish_reason="cut",
            num_overshot=num_tokens - cut,
        )
    return Progress(
        request_id=answer.request_id, token_ids_N=answer.token_ids_N[:num_tokens]
    )


def _salt(weights: Iterable[NamedArray]) -> int:
    salt = 0
    for name, array in weights:
        salt = zlib.crc32(array.tobytes(), zlib.crc32(name.encode(), salt))
    return salt


def _hash(token_ids: Ints, state: int) -> int:
    return zlib.crc32(np.ascontiguousarray(token_ids, "<i4").tobytes(), state)


def _generation(
    request: GenerationRequest,
    token_ids_N: Ints,
    logp_NV: NDArray[np.float64],
    eos: tuple[int, ...],
) -> Generation:
    num_tokens = len(token_ids_N)
    num_top = min(request.num_top, logp_NV.shape[1])
    top_ids_NM = np.full((num_tokens, request.num_top), PAD, np.int32)
    top_logp_NM = np.full((num_tokens, request.num_top), -np.inf, np.float32)
    top_ids_NM[:, :num_top] = np.argsort(-logp_NV, axis=1)[:, :num_top]
    top_logp_NM[:, :num_top] = -np.sort(-logp_NV, axis=1)[:, :num_top]
    logp_N = logp_NV[np.arange(num_tokens), token_ids_N].astype(np.float32)
    return Generation(
        request_id=request.request_id,
        token_ids_N=token_ids_N,
        logp_N=logp_N if request.num_top else logp_N[:0],
        top_ids_NM=top_ids_NM,
        top_logp_NM=top_logp_NM,
        finish_reason="stop" if token_ids_N[-1] in eos else "length",
    )


__all__ = ["FakeGeneration", "FakeTeacher"]
