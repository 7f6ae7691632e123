"""The teacher decodes on from the fork of each rollout. Axes as in messages.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from topd_ray.config import TakeoverConfig
from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.errors import TopdError
from topd_ray.messages import (
    CandidateSet,
    Floats,
    HiddenStates,
    Ints,
    Takeover,
    TeacherSignal,
)
from topd_ray.seeds import derive_seed

Read = Callable[[Ints, HiddenStates], tuple[TeacherSignal, Floats]]
"""Turns tokens and the states that predicted them into signal and log q."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeovers:
    """The takeovers of a call, and how much of the prefixes was in the KV cache."""

    takeovers: list[Takeover | None]
    """One a rollout, in order; None where there is no fork."""
    num_prefix_tokens: int
    """Number of tokens of all prefixes together."""
    num_cached_tokens: int
    """How many of them the engine had in its KV cache."""


class TakeoverActor:
    """CandidateSet -> Takeover. Keeps nothing between calls, so any call can be
    retried.
    """

    def __init__(
        self,
        config: TakeoverConfig,
        *,
        engine: GenerationEngine,
        read: Read,
        max_response_tokens: int,
        run_seed: int,
    ) -> None:
        """Take the teacher's engine, and how it reads its own tokens.

        `max_response_tokens` bounds the student's and the teacher's tokens together.
        """
        self._config = config
        self._engine = engine
        self._read = read
        self._max_response_tokens = max_response_tokens
        self._run_seed = run_seed

    def take_over(
        self, candidates: Sequence[CandidateSet], forks: Sequence[int | None]
    ) -> Takeovers:
        """Return the teacher's continuation of every rollout that has a fork.

        T ~ p_T(. | x, y_<t) token by token, with x the teacher's prompt. Its hidden
        states come from the decoding. A takeover does not depend on the other rollouts
        of the call, and a repeated call gives the same tokens.

        Args:
            candidates: One set a rollout.
            forks: t of each; None where the student keeps its rollout.

        Raises:
            TopdError: The engine returned no states.
        """
        requests = {
            rollout.rollout_id: self._request(rollout, fork)
            for rollout, fork in zip(candidates, forks, strict=True)
            if fork is not None
        }
        # The engine yields answers in the order in which they finish.
        answers = {
            answer.request_id: answer
            for answer in self._engine.generate(list(requests.values()))
        }
        return Takeovers(
            takeovers=[
                None
                if fork is None
                else self._takeover(rollout, fork, answers[rollout.rollout_id])
                for rollout, fork in zip(candidates, forks, strict=True)
            ],
            num_prefix_tokens=sum(len(r.prompt_ids) for r in requests.values()),
            num_cached_tokens=sum(a.num_cached_tokens for a in answers.values()),
        )

    def _takeover(
        self, rollout: CandidateSet, fork: int, answer: Generation
    ) -> Takeover:
        if answer.states_ND is None:
            raise TopdError(
                f"rollout {rollout.rollout_id}: the teacher's engine decoded without"
                " handing over its hidden states"
            )
        signal, logq_L = self._read(answer.token_ids_N, answer.states_ND)
        return Takeover(
            rollout_id=rollout.rollout_id,
            policy_version=rollout.policy_version,
            position=fork,
            response_ids_L=answer.token_ids_N,
            finish_reason=answer.finish_reason,
            signal=signal,
            logq_L=logq_L,
        )

    def _request(self, rollout: CandidateSet, fork: int) -> GenerationRequest:
        room = self._max_response_tokens - fork
        return GenerationRequest(
            request_id=rollout.rollout_id,
            prompt_ids=np.concatenate(
                [rollout.teacher_prompt_ids_P, rollout.response_ids_N[:fork]]
            ),
            max_tokens=min(room, self._config.tokens or room),
            temperature=self._config.temperature,
            top_p=1.0,
            seed=derive_seed(self._run_seed, rollout.rollout_id, fork, "takeover"),
            num_top=0,
            states=True,
        )


__all__ = ["TakeoverActor", "Takeovers"]
