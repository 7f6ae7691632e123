"""The student's decoder: streams finished rollouts in chunks and takes new weights in
between.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

import numpy as np

from topd_ray.config import RolloutConfig
from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.errors import TopdError
from topd_ray.messages import PAD, CandidateSet, Ints, Prompt, Rollout
from topd_ray.seeds import derive_seed
from topd_ray.weights.buckets import WeightBucket, open_buckets


class RolloutActor:
    """Prompt -> Rollout. Its weights start as version 0, the student's folder."""

    def __init__(
        self,
        config: RolloutConfig,
        open_engine: Callable[[], GenerationEngine],
        *,
        run_seed: int,
    ) -> None:
        self._config, self._run_seed = config, run_seed
        self._engine = open_engine()
        self._policy_version = 0

    def roll_out(
        self,
        prompts: Sequence[Prompt],
        *,
        policy_version: int,
        done: frozenset[str] = frozenset(),
    ) -> Iterator[list[Rollout]]:
        """Yield `chunk_size` rollouts at a time as they finish, shortest waits first.

        A prompt that brought its response is not decoded, and comes before those that
        are. The same prompts under the same weights give the same chunks, and with the
        rollouts of the first of them in `done` (another engine's, that died) the
        others: all are decoded again, for who ends when is a matter of company. Raises
        TopdError where something is to be decoded and the engine holds other weights
        than `policy_version`: a stale sample is never passed off as new.
        """
        asked = {
            rollout_id(prompt, sample): (prompt, sample)
            for prompt in prompts
            for sample in range(self._config.samples_per_prompt)
        }
        given = [
            which for which in asked.values() if which[0].response_ids_N is not None
        ]
        wanted = [which for which in asked.values() if which[0].response_ids_N is None]
        if wanted:
            self._refuse_stale("rollouts", policy_version)
        finished = self._engine.generate([self._request(*which) for which in wanted])
        rollouts = chain(
            (
                self._rollout(self._given(*which), *which, policy_version)
                for which in given
            ),
            (
                self._rollout(answer, *asked[answer.request_id], policy_version)
                for answer in finished
            ),
        )
        missing = (rollout for rollout in rollouts if rollout.rollout_id not in done)
        while chunk := list(islice(missing, self._config.chunk_size)):
            yield chunk

    def resample(
        self, candidates: Sequence[CandidateSet], *, window: int, policy_version: int
    ) -> list[Ints]:
        """D3 `resample`: `window` fresh tokens of the student from every candidate's
        prefix on.

        One (W, K) array a rollout, in the order of its positions, padded where the
        student ended. Sampled as rollouts are, and the same in every retry. Ends a
        `roll_out` that still streams. Raises TopdError for another `policy_version`, as
        `roll_out` does.
        """
        self._refuse_stale("windows", policy_version)
        requests = [
            self._window_request(found, int(t), window)
            for found in candidates
            for t in found.positions_W
        ]
        answers = {
            one.request_id: one.token_ids_N for one in self._engine.generate(requests)
        }
        fresh = [
            np.full((len(found.positions_W), window), PAD, dtype=np.int32)
            for found in candidates
        ]
        for found, fresh_WK in zip(candidates, fresh, strict=True):
            for row_K, t in zip(fresh_WK, found.positions_W, strict=True):
                token_ids_N = answers[_window_id(found, int(t))]
                row_K[: len(token_ids_N)] = token_ids_N
        return fresh

    @property
    def engine(self) -> GenerationEngine:
        """The engine under its current weights, for evaluation between steps."""
        return self._engine

    def update(self, policy_version: int, buckets: Sequence[WeightBucket]) -> None:
        """Swap in the weights of `policy_version`; every cached prefix is dropped with
        the old.
        """
        self._engine.load_weights(open_buckets(buckets, policy_version=policy_version))
        self._policy_version = policy_version

    def _refuse_stale(self, what: str, policy_version: int) -> None:
        if policy_version != self._policy_version:
            raise TopdError(
                f"{what} asked under policy_version {policy_version}, but the engine"
                f" holds {self._policy_version}; publish the weights first"
            )

    def _request(self, prompt: Prompt, sample: int) -> GenerationRequest:
        return GenerationRequest(
            request_id=rollout_id(prompt, sample),
            prompt_ids=prompt.token_ids_P,
            max_tokens=self._config.max_response_tokens,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            top_k=self._config.top_k,
            seed=derive_seed(
                self._run_seed, prompt.position, prompt.prompt_id, sample, "rollout"
            ),
            num_top=self._config.num_top,
        )

    def _window_request(
        self, found: CandidateSet, position: int, window: int
    ) -> GenerationRequest:
        return GenerationRequest(
            request_id=_window_id(found, position),
            prompt_ids=np.concatenate(
                [found.prompt_ids_P, found.response_ids_N[:position]]
            ),
            max_tokens=window,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            top_k=self._config.top_k,
            seed=derive_seed(self._run_seed, found.rollout_id, position, "resample"),
            num_top=0,
        )

    def _given(self, prompt: Prompt, sample: int) -> Generation:
        """The response of the data, as if it had been decoded; cut where decoding would
        stop.
        """
        assert prompt.response_ids_N is not None
        limit = self._config.max_response_tokens
        return Generation(
            request_id=rollout_id(prompt, sample),
            token_ids_N=prompt.response_ids_N[:limit],
            logp_N=np.zeros(0, np.float32),
            top_ids_NM=np.zeros((0, 0), np.int32),
            top_logp_NM=np.zeros((0, 0), np.float32),
            finish_reason="length" if len(prompt.response_ids_N) > limit else "stop",
        )

    def _rollout(
        self, answer: Generation, prompt: Prompt, sample: int, policy_version: int
    ) -> Rollout:
        teacher_ids_P = prompt.teacher_ids_P
        return Rollout(
            rollout_id=answer.request_id,
            prompt_id=prompt.prompt_id,
            position=prompt.position,
            sample_index=sample,
            policy_version=policy_version,
            prompt_ids_P=prompt.token_ids_P,
            teacher_prompt_ids_P=(
                prompt.token_ids_P if teacher_ids_P is None else teacher_ids_P
            ),
            response_ids_N=answer.token_ids_N,
            logp_N=answer.logp_N,
            top_ids_NM=answer.top_ids_NM,
            top_logp_NM=answer.top_logp_NM,
            finish_reason=answer.finish_reason,
        )


def rollout_id(prompt: Prompt, sample: int) -> str:
    """Name of one sample of one prompt, unique in a run: position in the order, then
    sample.
    """
    return f"{prompt.position:08d}.{sample}"


def _window_id(found: CandidateSet, position: int) -> str:
    return f"{found.rollout_id}@{position}"
