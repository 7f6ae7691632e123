"""The worker that holds one student rollout engine."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from topd_ray.actors.worker import Worker
from topd_ray.config import Config
from topd_ray.engines.open import open_generation
from topd_ray.engines.protocols import GenerationEngine
from topd_ray.evaluation import Accuracy, greedy_accuracy
from topd_ray.messages import CandidateSet, Ints, Prompt, Rollout, RolloutRequest
from topd_ray.models.roles import resolve_student
from topd_ray.records.receipts import ResampleReceipt, RolloutReceipt, Span
from topd_ray.rollout import RolloutActor
from topd_ray.weights.buckets import WeightBucket


class RolloutWorker(Worker):
    """Decodes rollouts, fresh windows, and answers to held-out problems."""

    def __init__(self, config: Config, *, log: Path | None = None) -> None:
        super().__init__(log)
        self._config = config
        self._folder = resolve_student(config)
        self._actor = RolloutActor(
            config.rollout,
            self._open_engine if config.decodes_rollouts else None,
            run_seed=config.run.seed,
        )
        self._max_answer_tokens = (
            config.evaluation.max_response_tokens or config.rollout.max_response_tokens
        )

    def _open_engine(self) -> GenerationEngine:
        return open_generation(
            self._folder,
            self._config.rollout.engine,
            max_model_len=self._config.student_context_tokens,
            seed=self._config.run.seed,
        )

    def roll_out(
        self,
        requests: Sequence[RolloutRequest],
        policy_version: int,
        done: frozenset[str] = frozenset(),
    ) -> Iterator[list[Rollout] | RolloutReceipt]:
        """Yield chunks and their receipts in turn; `done` rollouts are in no chunk."""
        began_s = time.monotonic()
        for chunk in self._actor.roll_out(
            requests, policy_version=policy_version, done=done
        ):
            # The engine rests while a chunk waits to be taken: that is no work.
            span = Span.since(began_s)
            yield chunk
            yield RolloutReceipt(
                rollout_ids=tuple(rollout.rollout_id for rollout in chunk),
                policy_version=policy_version,
                num_tokens=sum(len(rollout.response_ids_N) for rollout in chunk),
                num_truncated=sum(
                    rollout.finish_reason == "length" for rollout in chunk
                ),
                entropy_sum=-sum(float(rollout.logp_O.sum()) for rollout in chunk),
                span=span,
            )
            began_s = time.monotonic()

    def resample(
        self, candidate_sets: Sequence[CandidateSet], policy_version: int
    ) -> tuple[list[Ints], ResampleReceipt]:
        """Return fresh windows of every candidate (D3): one (W, K) array a rollout."""
        began_s = time.monotonic()
        windows = self._actor.resample(
            candidate_sets,
            window=self._config.probe.window,
            policy_version=policy_version,
        )
        return windows, ResampleReceipt(span=Span.since(began_s))

    def update(self, policy_version: int, *buckets: WeightBucket) -> Span:
        """Load the weights of `policy_version`; return the time span of the load."""
        began_s = time.monotonic()
        self._actor.update(policy_version, buckets)
        return Span.since(began_s)

    def evaluate(self, problems: Sequence[Prompt]) -> Accuracy:
        """Return the greedy accuracy of the current weights."""
        return greedy_accuracy(
            self._actor.engine,
            problems,
            folder=self._folder,
            max_tokens=self._max_answer_tokens,
        )

    def close(self) -> None:
        """Free the engine, where there is one."""
        self._actor.close()
