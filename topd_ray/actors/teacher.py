"""The worker that holds one teacher engine."""

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from topd_ray.actors.decoding_worker import DecodingWorker
from topd_ray.actors.outcomes import (
    TakeoverOutcome,
    is_right,
    takeover_receipt,
    unwanted,
)
from topd_ray.candidates import find_candidates
from topd_ray.config import Config
from topd_ray.contexts.chat import load_tokenizer
from topd_ray.engines.open import open_teacher
from topd_ray.engines.protocols import WakePart
from topd_ray.engines.tensors import release_cached_memory
from topd_ray.messages import (
    HIGH,
    LOW,
    CandidateSet,
    Floats,
    Ints,
    PartialRollout,
    ProbeSet,
    Rollout,
    ScoredRollout,
    Takeover,
)
from topd_ray.models.roles import resolve_teacher
from topd_ray.records.receipts import (
    ReadReceipt,
    ScoreReceipt,
    Span,
    TakeoverReceipt,
)
from topd_ray.takeover import TakeoverActor, fork_ahead, fork_candidates, fork_of
from topd_ray.teacher import TeacherActor
from topd_ray.weights.buckets import WeightBucket
from topd_ray.windows import threshold_group

_MOST_VALUES = 64
"""Of a rollout; its receipt goes to the driver."""


class TeacherWorker(DecodingWorker):
    """Scores rollouts, picks candidates, continues from them, rewrites.

    Its methods may be called from several threads at once.
    """

    def __init__(
        self, config: Config, *, sleeps: bool = False, log: Path | None = None
    ) -> None:
        super().__init__(config, log)
        folder = resolve_teacher(config)
        self._engine = open_teacher(
            folder,
            config.teacher.engine,
            max_model_len=config.teacher_context_tokens,
            seed=config.run.seed,
            sleeps=sleeps,
        )
        self._decode_with(self._engine, folder)
        self._actor = TeacherActor(
            config.teacher,
            config.candidates,
            folder,
            lambda: self._engine,
            with_entropy=(
                config.uses_takeovers
                and config.takeover.verdict in ("confident", "surprise", "both")
            ),
            max_staleness=config.rollout.max_staleness,
        )
        self._refuse_mismatch()
        self._taker = TakeoverActor(
            config.takeover,
            engine=self._engine,
            read=self._actor.read,
            max_response_tokens=config.rollout.max_response_tokens,
            run_seed=config.run.seed,
        )
        self._tokenizer = load_tokenizer(folder) if config.uses_takeovers else None
        group = threshold_group(config.windows.divergence)
        # D7 low_loss_q75 judges by as many low-loss windows, so they are probed too.
        self._controls = [LOW] if group == LOW else []

    def score(
        self, rollouts: Sequence[Rollout]
    ) -> tuple[*tuple[ScoredRollout, ...], list[CandidateSet], ScoreReceipt]:
        """Return each scored rollout for itself, their candidates, and the receipt.

        The driver sends a scored rollout to the one learner rank that trains on it.
        """
        began_s = time.monotonic()
        scored = self._actor.score(rollouts)
        candidate_sets = []
        if self._config.uses_probes or self._config.uses_takeovers:
            candidate_sets = [self._candidates(rollout) for rollout in scored]
        receipt = ScoreReceipt(
            num_tokens=sum(len(rollout.token_loss_N) for rollout in scored),
            num_sequence_tokens=tuple(
                len(rollout.prompt_ids_P) + len(rollout.response_ids_N)
                for rollout in rollouts
            ),
            num_candidates=sum(
                int((candidates.groups_W == HIGH).sum())
                for candidates in candidate_sets
                if self._config.uses_probes
            ),
            loss_sum=float(
                sum(rollout.token_loss_N.sum(dtype=np.float64) for rollout in scored)
            ),
            threshold_values=self._threshold_values(candidate_sets),
            span=Span.since(began_s),
        )
        return (*scored, candidate_sets, receipt)

    def read_ahead(
        self,
        known: frozenset[str],
        threshold: float,
        *partials: Sequence[PartialRollout],
    ) -> tuple[list[CandidateSet], ReadReceipt]:
        """Read beginnings of rollouts; return the forks that are certain.

        Args:
            known: Rollouts whose fork was found before: they are not read on.
            threshold: Nats of surprise above which a token is an error.
            partials: Beginnings; of a rollout that comes twice the later one counts.

        Returns:
            One set for each rollout whose fork was found, and the receipt.
        """
        began_s = time.monotonic()
        newest = {p.rollout_id: p for p in chain.from_iterable(partials)}
        wanted = [p for name, p in newest.items() if name not in known]
        found = []
        for partial, reading in zip(
            wanted, self._actor.read_ahead(wanted), strict=True
        ):
            fork = fork_ahead(
                partial,
                reading.logq_N,
                reading.entropy_N,
                self._config.takeover,
                threshold,
                min_window=self._config.candidates.min_window,
            )
            if fork is not None:
                found.append(fork)
        receipt = ReadReceipt(
            forks=tuple((fork.rollout_id, int(fork.positions_W[0])) for fork in found),
            span=Span.since(began_s),
        )
        return found, receipt

    def take_over(
        self,
        candidates: Sequence[CandidateSet],
        answers: Mapping[str, str],
        threshold: float,
        known: frozenset[str],
        *probe_sets: ProbeSet,
    ) -> tuple[*tuple[Takeover | None, ...], TakeoverReceipt]:
        """Return the takeover of each rollout for itself, and the receipt.

        Args:
            candidates: One set a rollout, of `score`.
            answers: The right answer by rollout id, where it is known.
            threshold: D_OT above which a position is a real divergence, or nats of
                surprise above which it is an error.
            known: Rollouts whose takeover is there already: they get None.
            probe_sets: One a rollout; none where the verdict asks for none.
        """
        began_s = time.monotonic()
        probes = {probe_set.rollout_id: probe_set for probe_set in probe_sets}
        forks = [
            fork_of(
                rollout,
                probes.get(rollout.rollout_id),
                self._config.takeover,
                threshold,
            )
            for rollout in candidates
        ]
        continued = self._taker.take_over(
            candidates,
            [
                None if rollout.rollout_id in known else fork
                for rollout, fork in zip(candidates, forks, strict=True)
            ],
        )
        outcomes = [
            self._outcome(rollout, takeover, answers.get(rollout.rollout_id))
            for rollout, takeover in zip(candidates, continued.takeovers, strict=True)
        ]
        receipt = takeover_receipt(
            candidates,
            continued,
            outcomes,
            self._judged_values(candidates, forks),
            Span.since(began_s),
        )
        return (*continued.takeovers, receipt)

    def _threshold_values(
        self, candidate_sets: Sequence[CandidateSet]
    ) -> tuple[float, ...]:
        """Return surprises that a first threshold is taken from, where one is."""
        if not self._judges_by_surprise:
            return ()
        return tuple(
            chain.from_iterable(_spread(rollout.losses_W) for rollout in candidate_sets)
        )

    def _judged_values(
        self, candidate_sets: Sequence[CandidateSet], forks: Sequence[int | None]
    ) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """Return surprises up to each rollout's fork, by its id.

        What lies behind a fork does not count: a student that was stopped there has
        nothing behind it.
        """
        if not self._judges_by_surprise:
            return ()
        return tuple(
            (rollout.rollout_id, _spread(rollout.losses_W[: _num_judged(fork)]))
            for rollout, fork in zip(candidate_sets, forks, strict=True)
        )

    @property
    def _judges_by_surprise(self) -> bool:
        return self._config.needs_threshold and not self._config.uses_probes

    def _outcome(
        self, rollout: CandidateSet, takeover: Takeover | None, answer: str | None
    ) -> TakeoverOutcome:
        if takeover is None:
            return TakeoverOutcome()
        t = takeover.position
        before = self._text(rollout.response_ids_N)
        after = self._text(
            np.concatenate([rollout.response_ids_N[:t], takeover.response_ids_L])
        )
        return TakeoverOutcome(
            unwanted=unwanted(
                self._config.takeover.keep,
                what="takeover",
                before=before,
                after=after,
                answer=answer,
            ),
            right_before=(
                None if answer is None or rollout.cut else is_right(before, answer)
            ),
            right_after=None if answer is None else is_right(after, answer),
        )

    def _text(self, response_ids_N: Ints) -> str:
        assert self._tokenizer is not None, "the config has no takeovers"
        text: str = self._tokenizer.decode(
            response_ids_N.tolist(), skip_special_tokens=True
        )
        return text

    def update(self, policy_version: int, *buckets: WeightBucket) -> Span:
        """Load the student's weights of `policy_version` (self-distillation)."""
        began_s = time.monotonic()
        self._actor.update(policy_version, buckets)
        self._refuse_mismatch()
        return Span.since(began_s)

    def sleep(self) -> None:
        """See `Worker`. The output head stays."""
        self._engine.sleep()
        release_cached_memory()

    def wake(self, part: WakePart = "all") -> None:
        """See `Worker`."""
        self._engine.wake(part)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def _refuse_mismatch(self) -> None:
        # The states of the fake engine are noise, which no head turns into its tokens.
        if self._config.teacher.engine.backend != "fake":
            self._actor.refuse_mismatch(self._engine)

    def _candidates(self, scored: ScoredRollout) -> CandidateSet:
        if self._config.uses_takeovers:
            return fork_candidates(
                scored, self._config.takeover, self._config.candidates
            )
        return find_candidates(
            scored,
            self._config.candidates,
            controls=self._controls,
            run_seed=self._config.run.seed,
        )


def _spread(values_W: Floats) -> tuple[float, ...]:
    """Return some of a rollout's values, evenly spread."""
    return tuple(map(float, values_W[:: 1 + len(values_W) // _MOST_VALUES]))


def _num_judged(fork: int | None) -> int | None:
    return None if fork is None else fork + 1
