"""The student's decoder: streams finished rollouts in chunks and takes new weights in between."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from topd_ray.config import RolloutConfig
from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.errors import TopdError
from topd_ray.messages import Prompt, Rollout
from topd_ray.seeds import derive_seed
from topd_ray.weights.buckets import WeightBucket, open_buckets


class RolloutActor:
    """Prompt -> Rollout. Its weights start as version 0, the student's folder."""

    def __init__(
        self, config: RolloutConfig, open_engine: Callable[[], GenerationEngine], *, run_seed: int
    ) -> None:
        self._config, self._run_seed = config, run_seed
        self._engine = open_engine()
        self._policy_version = 0

    def roll_out(
        self, prompts: Sequence[Prompt], *, policy_version: int
    ) -> Iterator[list[Rollout]]:
        """Yield `chunk_size` rollouts at a time as they finish, shortest waits first.

        The same prompts under the same weights give the same chunks. Raises TopdError where the
        engine holds other weights than `policy_version`: a stale sample is never passed off as new.
        """
        if policy_version != self._policy_version:
            raise TopdError(
                f"rollouts asked under policy_version {policy_version}, but the engine holds "
                f"{self._policy_version}; publish the weights first"
            )
        asked = {
            rollout_id(prompt, sample): (prompt, sample)
            for prompt in prompts
            for sample in range(self._config.samples_per_prompt)
        }
        finished = self._engine.generate([self._request(*which) for which in asked.values()])
        rollouts = (self._rollout(answer, *asked[answer.request_id]) for answer in finished)
        while chunk := list(islice(rollouts, self._config.chunk_size)):
            yield chunk

    @property
    def engine(self) -> GenerationEngine:
        """The engine under its current weights, for evaluation between steps."""
        return self._engine

    def update(self, policy_version: int, buckets: Sequence[WeightBucket]) -> None:
        """Swap in the weights of `policy_version`; every cached prefix is dropped with the old."""
        self._engine.load_weights(open_buckets(buckets, policy_version=policy_version))
        self._policy_version = policy_version

    def _request(self, prompt: Prompt, sample: int) -> GenerationRequest:
        return GenerationRequest(
            request_id=rollout_id(prompt, sample),
            prompt_ids=prompt.token_ids_P,
            max_tokens=self._config.max_response_tokens,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            seed=derive_seed(self._run_seed, prompt.position, prompt.prompt_id, sample, "rollout"),
            num_top=self._config.num_top,
        )

    def _rollout(self, answer: Generation, prompt: Prompt, sample: int) -> Rollout:
        return Rollout(
            rollout_id=answer.request_id,
            prompt_id=prompt.prompt_id,
            position=prompt.position,
            sample_index=sample,
            policy_version=self._policy_version,
            prompt_ids_P=prompt.token_ids_P,
            response_ids_N=answer.token_ids_N,
            logp_N=answer.logp_N,
            top_ids_NM=answer.top_ids_NM,
            top_logp_NM=answer.top_logp_NM,
            finish_reason=answer.finish_reason,
        )


def rollout_id(prompt: Prompt, sample: int) -> str:
    """Name of one sample of one prompt, unique in a run: position in the order, then sample."""
    return f"{prompt.position:08d}.{sample}"
