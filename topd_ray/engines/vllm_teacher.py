"""A vLLM engine that scores and continues: one copy of the weights, one prefix cache.

A scoring request reads no more of the prefix cache than lies before the states that are
wanted: the others are computed in its prefill, where the worker extension keeps them.
It does write the cache: the continuations that follow find their prefixes there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from topd_ray.config.base import EngineConfig
from topd_ray.engines.asleep import Wakefulness
from topd_ray.engines.checks import check_requests, check_sequences, whole_weights
from topd_ray.engines.protocols import (
    Generation,
    GenerationRequest,
    NamedArray,
    WakePart,
)
from topd_ray.engines.stepping import Add, Stepper
from topd_ray.engines.vllm import (
    GENERATION_OPTIONS,
    as_generation,
    put_to_sleep,
    replace_weights,
    sampling_params,
    scoring_params,
    sleep_options,
    start_engine,
    stop_engine,
    tokens_prompt,
    wake_up,
)
from topd_ray.engines.vllm_worker import DECODING, SCORING
from topd_ray.messages import HiddenStates, Ints
from topd_ray.models.architecture import weight_shapes
from topd_ray.models.facts import read_facts
from topd_ray.models.stop_ids import eos_ids
from topd_ray.models.vocabulary import num_ids

SCORING_PRIORITY = 0
CONTINUATION_PRIORITY = 1
"""Scoring goes first: candidates, and so all work behind them, wait for the scores."""


class VllmTeacher:
    """Scores and continues for several threads at once."""

    def __init__(
        self,
        folder: Path,
        engine: EngineConfig,
        *,
        max_model_len: int,
        seed: int = 0,
        sleeps: bool = False,
    ) -> None:
        self._stop_ids = eos_ids(folder)
        self._num_ids = num_ids(folder)
        self._shapes = weight_shapes(folder)
        # vLLM takes only prompts that leave room for one token; scoring needs none.
        limit = read_facts(folder).max_position_embeddings
        engine_len = max_model_len if max_model_len == limit else max_model_len + 1
        self._max_model_len = max_model_len
        self._max_scored_len = engine_len - 1
        self._names = count()
        self._stepper = Stepper(
            lambda: _Vllm(
                folder, engine, max_model_len=engine_len, seed=seed, sleeps=sleeps
            ),
            name="teacher",
        )
        self._wakefulness = Wakefulness()

    def hidden_states(
        self, sequences: Sequence[Ints], starts: Sequence[int] | None = None
    ) -> list[HiddenStates]:
        """See `ScoringEngine`.

        What lies before a start is read from the prefix cache. Where the cache holds
        more than that, because another sequence begins alike, all is computed.
        """
        self._wakefulness.require("hidden_states")
        check_sequences(sequences, self._max_scored_len)
        starts = starts or [0] * len(sequences)
        every = range(len(sequences))
        states = self._states(sequences, starts, [starts[i] > 0 for i in every])
        missing = [i for i in every if states[i] is None]
        again = self._states(
            [sequences[i] for i in missing],
            [starts[i] for i in missing],
            [False] * len(missing),
        )
        for index, states_LD in zip(missing, again, strict=True):
            states[index] = states_LD
        return [states_LD for states_LD in states if states_LD is not None]

    def _states(
        self,
        sequences: Sequence[Ints],
        starts: Sequence[int],
        read_cache: Sequence[bool],
    ) -> list[HiddenStates | None]:
        """Return the states from the starts on; None where the cache held some."""
        place = {f"{SCORING}{next(self._names)}": i for i in range(len(sequences))}
        adds = [
            _adding(
                name,
                sequences[index],
                partial(scoring_params, reads_cache=read_cache[index]),
                SCORING_PRIORITY,
            )
            for name, index in place.items()
        ]

        def finish(vllm: "_Vllm", output: Any) -> tuple[int, HiddenStates | None]:
            index = place[output.request_id]
            start = starts[index]
            if (output.num_cached_tokens or 0) > start:
                vllm.drop(output)
                return index, None
            return index, vllm.states(output, start, len(sequences[index]))

        states: list[HiddenStates | None] = [None] * len(sequences)
        call = self._stepper.begin(adds, finish)
        try:
            for _ in sequences:
                index, states_LD = call.next()
                states[index] = states_LD
        finally:
            self._stepper.finish(call)
        return states

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield each finished generation; stop iterating to abort the rest."""
        self._wakefulness.require("generate")
        check_requests(requests, self._max_model_len)
        return self._run(requests)

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Replace all weights and drop the prefix cache; ends every call under way."""
        self._wakefulness.require_weights("load_weights")
        whole = whole_weights(weights, self._shapes)

        def replace(vllm: "_Vllm") -> None:
            self._stepper.end_all(vllm, "new weights ended this call")
            replace_weights(vllm.engine, whole)

        self._stepper.do(replace)

    def sleep(self) -> None:
        """See `Sleeper`. Ends every call under way."""

        def put(vllm: "_Vllm") -> None:
            self._stepper.end_all(vllm, "the engine was put to sleep in this call")
            put_to_sleep(vllm.engine)

        if self._wakefulness.falls_asleep():
            self._stepper.do(put)

    def wake(self, part: WakePart = "all") -> None:
        """See `Sleeper`."""
        if self._wakefulness.wakes(part):
            self._stepper.do(lambda vllm: wake_up(vllm.engine, part))

    def close(self) -> None:
        """Shut vLLM down and free its memory; ends every call under way."""
        self._stepper.close()

    def _run(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        named = {
            f"{DECODING if request.states else ''}{next(self._names)}": request
            for request in requests
        }
        adds = [self._continuing(name, request) for name, request in named.items()]

        def finish(vllm: "_Vllm", output: Any) -> tuple[str, Generation]:
            request = named[output.request_id]
            answer = as_generation(output, request)
            if request.states:
                first = len(request.prompt_ids) - 1
                states_ND = vllm.states(output, first, first + len(answer.token_ids_N))
                answer = replace(answer, states_ND=states_ND)
            return output.request_id, answer

        call = self._stepper.begin(adds, finish)
        left = set(named)
        try:
            while left:
                name, answer = call.next()
                left.remove(name)
                yield answer
        finally:
            self._stepper.finish(call)

    def _continuing(self, name: str, request: GenerationRequest) -> Add:
        def params() -> Any:
            return sampling_params(request, self._stop_ids, self._num_ids)

        return _adding(name, request.prompt_ids, params, CONTINUATION_PRIORITY)


class _Vllm:
    """vLLM's engine as `Stepper` drives it, with the request ids of this file."""

    def __init__(
        self,
        folder: Path,
        engine: EngineConfig,
        *,
        max_model_len: int,
        seed: int,
        sleeps: bool,
    ) -> None:
        self.engine = start_engine(
            folder,
            engine,
            max_model_len=max_model_len,
            seed=seed,
            scheduling_policy="priority",
            **GENERATION_OPTIONS,
            **sleep_options(sleeps=sleeps),
        )
        self.engine.collective_rpc("keep_states")
        # vLLM's id of each request whose states are kept: the name, a random suffix
        self._kept: dict[str, str] = {}
        # not the clock: equal readings would make the order random
        self._arrivals = count()

    def add(self, name: str, token_ids: Ints, params: Any, priority: int) -> None:
        internal = self.engine.add_request(
            name,
            tokens_prompt(token_ids),
            params,
            arrival_time=float(next(self._arrivals)),
            priority=priority,
        )
        if name.startswith((SCORING, DECODING)):
            self._kept[name] = internal

    def step(self) -> Sequence[Any]:
        return [output for output in self.engine.step() if output.finished]

    def states(self, output: Any, first: int, last: int) -> HiddenStates:
        """Take the states of a finished request's tokens, `first` to `last`.

        Returns (last - first, D), float32 or the bits of bfloat16.
        """
        arguments = (self._kept.pop(output.request_id), first, last)
        taken: HiddenStates
        taken, *_ = self.engine.collective_rpc("take_states", args=arguments)
        return taken

    def drop(self, output: Any) -> None:
        """Drop the states of a finished request."""
        self.engine.collective_rpc(
            "drop_states", args=([self._kept.pop(output.request_id)],)
        )

    def abort(self, request_ids: Sequence[str]) -> None:
        self.engine.abort_request(list(request_ids))
        kept = [self._kept.pop(name) for name in request_ids if name in self._kept]
        self.engine.collective_rpc("drop_states", args=(kept,))

    def close(self) -> None:
        engine = self.engine
        self.engine = None
        stop_engine(engine)


def _adding(
    name: str, token_ids: Ints, params: Callable[[], Any], priority: int
) -> Add:
    def add(vllm: _Vllm) -> str:
        vllm.add(name, token_ids, params(), priority)
        return name

    return add


__all__ = ["VllmTeacher"]
