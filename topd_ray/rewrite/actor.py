"""Let the teacher rewrite each rollout under a refinement prompt (TRD)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from topd_ray.config import Context, RewriteConfig
from topd_ray.contexts import ChatTemplate, Forms, TeacherPrompts
from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.messages import Ints, Prompt, Rollout
from topd_ray.seeds import derive_seed


class RewriteActor:
    """Rollout -> Rollout. Keeps nothing between calls, so any call can be retried."""

    def __init__(
        self,
        config: RewriteConfig,
        *,
        context: Context,
        forms: Forms,
        chat: ChatTemplate,
        engine: GenerationEngine,
        max_prompt_tokens: int,
        max_reference_tokens: int,
        max_response_tokens: int,
        run_seed: int,
    ) -> None:
        """Take the teacher's template and engine; `context` is one of refinement.

        `max_prompt_tokens` bounds the refinement prompt, `max_reference_tokens` the
        reference solution inside it, `max_response_tokens` the rewrite.
        """
        self._config = config
        self._engine = engine
        self._run_seed = run_seed
        self._max_response_tokens = max_response_tokens
        self._prompts = TeacherPrompts(
            context,
            forms,
            chat,
            max_tokens=max_prompt_tokens,
            max_reference_tokens=max_reference_tokens,
        )

    def rewrite(
        self, rollouts: Sequence[Rollout], prompts: Mapping[str, Prompt]
    ) -> list[Rollout]:
        """Return one rewrite a rollout, in order, under the same rollout id.

        `prompts` is keyed by prompt_id. The teacher's prompt of a rewrite is the
        refinement prompt; the student's prompt stays. The student sampled no token of
        it, so `logp_O` and the top ids are empty. A rollout's rewrite does not depend
        on the other rollouts of the call.
        """
        requests = [
            self._request(rollout, prompts[rollout.prompt_id]) for rollout in rollouts
        ]
        # The engine yields rewrites in the order in which they finish.
        by_id = {
            answer.request_id: answer for answer in self._engine.generate(requests)
        }
        return [
            _rewritten(rollout, request.prompt_ids, by_id[rollout.rollout_id])
            for rollout, request in zip(rollouts, requests, strict=True)
        ]

    def decode(self, response_ids_N: Ints) -> str:
        """Return the text of a response, for grading."""
        return self._prompts.decode(response_ids_N)

    def _request(self, rollout: Rollout, prompt: Prompt) -> GenerationRequest:
        return GenerationRequest(
            request_id=rollout.rollout_id,
            prompt_ids=self._prompts.build(
                prompt, attempt=self.decode(rollout.response_ids_N)
            ),
            max_tokens=self._max_response_tokens,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            top_k=self._config.top_k,
            seed=derive_seed(self._run_seed, rollout.rollout_id, "rewrite"),
            num_top=0,  # the student's likeliest ids are wanted, not the teacher's
        )


def _rewritten(
    rollout: Rollout, teacher_prompt_ids_P: Ints, answer: Generation
) -> Rollout:
    return replace(
        rollout,
        teacher_prompt_ids_P=teacher_prompt_ids_P,
        response_ids_N=answer.token_ids_N,
        logp_O=np.zeros(0, np.float32),
        top_ids_OM=np.zeros((0, 0), np.int32),
        top_logp_OM=np.zeros((0, 0), np.float32),
        finish_reason=answer.finish_reason,
    )


__all__ = ["RewriteActor"]
