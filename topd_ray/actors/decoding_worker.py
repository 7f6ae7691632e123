"""What teacher workers and probe workers share: windows and rewrites of the teacher."""

import time
from collections.abc import Sequence
from pathlib import Path

from topd_ray.actors.outcomes import unwanted
from topd_ray.actors.worker import Worker
from topd_ray.config import Config
from topd_ray.contexts import load_forms, teacher_chat
from topd_ray.engines.protocols import GenerationEngine
from topd_ray.messages import PAD, CandidateSet, Ints, Prompt, Rollout
from topd_ray.models.roles import resolve_student
from topd_ray.probe import continue_from
from topd_ray.records.receipts import ContinueReceipt, RewriteReceipt, Span
from topd_ray.rewrite import RewriteActor


class DecodingWorker(Worker):
    """The base of workers whose engine decodes as the teacher.

    A teacher worker always does; a probe worker where `probe.engine` is a section.
    """

    def __init__(self, config: Config, log: Path | None) -> None:
        super().__init__(log)
        self._config = config
        self._decoding: GenerationEngine | None = None
        self._rewriter: RewriteActor | None = None

    def _decode_with(self, engine: GenerationEngine, folder: Path) -> None:
        """Decode with an engine that has loaded the teacher's `folder`."""
        self._decoding = engine
        if self._config.uses_rewrites:
            self._rewriter = _rewriter(self._config, folder, engine)

    def continue_from(
        self, candidate_sets: Sequence[CandidateSet]
    ) -> tuple[list[Ints], ContinueReceipt]:
        """Return the teacher's windows of a chunk: one (W, K) array a rollout."""
        began_s = time.monotonic()
        assert self._decoding is not None, "this worker has no engine"
        continued = continue_from(
            self._decoding,
            candidate_sets,
            self._config.probe,
            run_seed=self._config.run.seed,
        )
        return continued.windows, ContinueReceipt(
            num_tokens=sum(int((ids_WK != PAD).sum()) for ids_WK in continued.windows),
            num_prefix_tokens=continued.num_prefix_tokens,
            num_cached_tokens=continued.num_cached_tokens,
            span=Span.since(began_s),
        )

    def rewrite(
        self, rollouts: Sequence[Rollout], prompts: Sequence[Prompt]
    ) -> tuple[list[Rollout], RewriteReceipt]:
        """Return the rewrites of a chunk, without those that `rewrite.keep` drops."""
        began_s = time.monotonic()
        assert self._rewriter is not None, "the config has no rewrites"
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        rewritten = self._rewriter.rewrite(rollouts, by_id)
        dropped: dict[str, str] = {}
        for attempt, rewrite in zip(rollouts, rewritten, strict=True):
            answer = by_id[attempt.prompt_id].answer
            reason = unwanted(
                self._config.rewrite.keep,
                what="rewrite",
                before=self._rewriter.decode(attempt.response_ids_N),
                after=self._rewriter.decode(rewrite.response_ids_N),
                answer=answer,
            )
            if reason is not None:
                dropped[attempt.rollout_id] = reason
        return (
            [rewrite for rewrite in rewritten if rewrite.rollout_id not in dropped],
            RewriteReceipt(
                dropped=tuple(dropped.items()),
                num_tokens=sum(len(rewrite.response_ids_N) for rewrite in rewritten),
                span=Span.since(began_s),
            ),
        )


def _rewriter(config: Config, folder: Path, engine: GenerationEngine) -> RewriteActor:
    return RewriteActor(
        config.rewrite,
        context=config.objective.context,
        forms=load_forms(config.prompts.forms),
        chat=teacher_chat(config, student=resolve_student(config), teacher=folder),
        engine=engine,
        max_prompt_tokens=config.teacher_prompt_tokens,
        max_reference_tokens=config.prompts.max_reference_tokens,
        max_response_tokens=(
            config.rewrite.max_response_tokens or config.rollout.max_response_tokens
        ),
        run_seed=config.run.seed,
    )
