"""The worker that holds one student rollout engine."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from topd_ray.actors.worker import Worker
from topd_ray.config import Config, Transport
from topd_ray.engines.open import open_generation
from topd_ray.engines.protocols import (
    RolloutEngine,
    TransferGroup,
    TransferPiece,
    WakePart,
)
from topd_ray.evaluation import Accuracy, greedy_accuracy
from topd_ray.messages import (
    CandidateSet,
    Ints,
    PartialRollout,
    Prompt,
    Rollout,
    RolloutRequest,
)
from topd_ray.models.roles import resolve_student
from topd_ray.records.receipts import (
    PartialReceipt,
    Receipt,
    ResampleReceipt,
    RolloutReceipt,
    Span,
)
from topd_ray.rollout import FinishedRollouts, RolloutActor
from topd_ray.weights.buckets import WeightBucket


class RolloutWorker(Worker):
    """Decodes rollouts, fresh windows, and answers to held-out problems."""

    def __init__(
        self,
        config: Config,
        *,
        transport: Transport = "store",
        sleeps: bool = False,
        log: Path | None = None,
    ) -> None:
        super().__init__(log)
        self._sleeps = sleeps
        self._config = config
        self._transport = transport
        self._folder = resolve_student(config)
        self._actor = RolloutActor(
            config.rollout,
            self._open_engine if config.decodes_rollouts else None,
            run_seed=config.run.seed,
        )
        self._max_answer_tokens = (
            config.evaluation.max_response_tokens or config.rollout.max_response_tokens
        )

    def _open_engine(self) -> RolloutEngine:
        return open_generation(
            self._folder,
            self._config.rollout.engine,
            max_model_len=self._config.student_context_tokens,
            seed=self._config.run.seed,
            transport=self._transport,
            sleeps=self._sleeps,
        )

    def roll_out(
        self,
        requests: Sequence[RolloutRequest],
        policy_version: int,
        done: frozenset[str] = frozenset(),
        cuts: Mapping[str, int] | None = None,
        stride: int | None = None,
    ) -> Iterator[list[Rollout] | list[PartialRollout] | Receipt]:
        """Yield chunks and their receipts in turn; `done` rollouts are in no chunk.

        With a stride, beginnings of rollouts come in between, each list with its
        receipt. `cuts`: the tokens that rollouts are cut to, as far as it is known.
        """
        began_s = time.monotonic()
        if stride is None:
            items: Iterator[list[PartialRollout] | FinishedRollouts] = (
                FinishedRollouts(rollouts=chunk, num_overshot=0)
                for chunk in self._actor.roll_out(
                    requests, policy_version=policy_version, done=done
                )
            )
        else:
            items = self._actor.roll_out_in_pieces(
                requests,
                policy_version=policy_version,
                stride=stride,
                done=done,
                cuts=cuts,
            )
        for item in items:
            # The engine rests while an item waits to be taken: that is no work.
            span = Span.since(began_s)
            if isinstance(item, FinishedRollouts):
                yield item.rollouts
                yield _receipt(item, policy_version, span)
            else:
                yield item
                yield PartialReceipt(span=span)
            began_s = time.monotonic()

    def cut(self, cuts: Mapping[str, int]) -> None:
        """Cut rollouts that are being decoded; called while `roll_out` streams."""
        self._actor.cut(cuts)

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

    def join(self, group: TransferGroup, rank_offset: int) -> None:
        """Join the learner in a group for weights; waits for all other engines."""
        self._actor.join(group, rank_offset=rank_offset)

    def take_piece(self, policy_version: int, piece: TransferPiece) -> Span:
        """Load a piece of the weights of `policy_version`; return when it did."""
        began_s = time.monotonic()
        self._actor.take_piece(policy_version, piece)
        return Span.since(began_s)

    def evaluate(self, problems: Sequence[Prompt]) -> Accuracy:
        """Return the greedy accuracy of the current weights."""
        return greedy_accuracy(
            self._actor.engine,
            problems,
            folder=self._folder,
            max_tokens=self._max_answer_tokens,
        )

    def sleep(self) -> None:
        """See `Worker`."""
        self._actor.sleep()

    def wake(self, part: WakePart = "all") -> None:
        """See `Worker`."""
        self._actor.wake(part)

    def close(self) -> None:
        """Free the engine, where there is one."""
        self._actor.close()


def _receipt(
    finished: FinishedRollouts, policy_version: int, span: Span
) -> RolloutReceipt:
    rollouts = finished.rollouts
    return RolloutReceipt(
        rollout_ids=tuple(rollout.rollout_id for rollout in rollouts),
        policy_version=policy_version,
        num_tokens=sum(len(rollout.response_ids_N) for rollout in rollouts),
        num_truncated=sum(rollout.finish_reason == "length" for rollout in rollouts),
        entropy_sum=-sum(float(rollout.logp_O.sum()) for rollout in rollouts),
        num_overshot=finished.num_overshot,
        span=span,
    )
