"""What happens to one chunk between the rollout engine and the learner.

    rewrite (TRD) -> score -> (resample, D3) -> continue -> probe -> (take over)
            -> shares of the ranks

The pipeline of a run and `topd replay` drive the same stages.
"""

from collections.abc import Mapping, Sequence

from topd_ray.actors.pool import Pool
from topd_ray.actors.protocols import (
    DecoderHandle,
    Fleet,
    RankShare,
    Ref,
    RolloutHandle,
    TeacherHandle,
)
from topd_ray.config import Config
from topd_ray.driver.dealing import deal_to_ranks
from topd_ray.driver.step import Chunk, EarlyTakeover
from topd_ray.messages import (
    CandidateSet,
    Ints,
    ProbeSet,
    Prompt,
    ScoredRollout,
    Takeover,
    rollout_id,
)


class Stages:
    """Takes chunks through the teachers and probers of a fleet."""

    def __init__(self, config: Config, fleet: Fleet) -> None:
        self._config = config
        self._teachers = Pool(fleet.teachers)
        self._probers = Pool(fleet.probers)
        # A pool beside the teachers': a teacher reads while it rewrites.
        writers = fleet.probers if config.probe_engine else fleet.teachers
        self._writers = Pool[DecoderHandle](writers)

    async def rewrite(self, chunk: Chunk, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Put the teacher's rewrites in the place of the rollouts.

        Returns the rollouts whose rewrites are not wanted, each with the reason; they
        leave the chunk.
        """
        async with self._writers.free() as writer:
            rewritten = await writer.rewrite(chunk.rollouts, prompts, chunk.log)
        chunk.rollouts = rewritten.rollouts
        chunk.rewrite = rewritten.receipt
        dropped = dict(rewritten.receipt.dropped)
        kept = [name for name in chunk.rollout_ids if name not in dropped]
        chunk.rollout_ids = tuple(kept)
        return dropped

    async def score(
        self, chunk: Chunk, teacher: TeacherHandle | None = None
    ) -> tuple[TeacherHandle, Ref[list[CandidateSet]]]:
        """Score a chunk; return its candidates and the teacher that has its
        prefixes.

        `teacher`: the one that has read the chunk's beginnings; else a free one.
        """
        num_rollouts = len(chunk.rollout_ids)
        if teacher is not None:
            scored = await teacher.score(chunk.rollouts, num_rollouts, chunk.log)
        else:
            async with self._teachers.free() as teacher:
                scored = await teacher.score(chunk.rollouts, num_rollouts, chunk.log)
        chunk.scored = scored.rollouts
        chunk.score = scored.receipt
        return teacher, scored.candidates

    async def probe(
        self,
        chunk: Chunk,
        teacher: TeacherHandle,
        candidates: Ref[list[CandidateSet]],
        engine: RolloutHandle,
    ) -> None:
        """Continue from the candidates and solve the transport.

        `engine` decoded the rollouts; it decodes fresh windows where D3 asks for them.
        """
        student_windows = None
        if self._config.probe.student == "resample":
            version = chunk.rollout.policy_version
            resampled = await engine.resample(candidates, version, chunk.log)
            student_windows = resampled.windows
        teacher_windows = None
        if self._config.probe_engine is None:
            # It needs no turn of the teacher's: scoring goes first inside its engine.
            teacher_windows = await self._continue(chunk, teacher, candidates)
        async with self._probers.free() as prober:
            if teacher_windows is None:
                teacher_windows = await self._continue(chunk, prober, candidates)
            probed = await prober.probe(
                candidates,
                teacher_windows,
                student_windows,
                len(chunk.rollout_ids),
                chunk.log,
            )
        chunk.probe_sets = probed.probe_sets
        chunk.probe = probed.receipt

    async def take_over(
        self,
        chunk: Chunk,
        teacher: TeacherHandle,
        candidates: Ref[list[CandidateSet]],
        answers: Mapping[str, str],
        threshold: float,
        early: Mapping[str, EarlyTakeover],
    ) -> dict[str, str]:
        """Let the teacher, which has the prefixes, go on from each rollout's fork.

        `answers`: the right answer by rollout id, where it is known. `early`: the
        takeovers that are there already.

        Returns the rollouts whose takeovers are not wanted, each with the reason; they
        leave the chunk.
        """
        names = chunk.rollout_ids
        taken = await teacher.take_over(
            candidates,
            chunk.probe_sets,
            {name: answers[name] for name in names if name in answers},
            threshold,
            len(names),
            chunk.log,
            frozenset(early),
        )
        chunk.takeover = taken.receipt
        chunk.takeovers = taken.takeovers
        if early:  # then none is dropped
            chunk.put_early(early)
        dropped = dict(taken.receipt.dropped)
        chunk.leave_out(dropped)
        return dropped

    def answers(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Return the right answer by rollout id, where it is known."""
        return {
            rollout_id(prompt, sample): prompt.answer
            for prompt in prompts
            for sample in range(self._config.rollout.samples_per_prompt)
            if prompt.answer is not None
        }

    @staticmethod
    async def _continue(
        chunk: Chunk, decoder: DecoderHandle, candidates: Ref[list[CandidateSet]]
    ) -> Ref[list[Ints]]:
        continued = await decoder.continue_from(candidates, chunk.log)
        chunk.continued = continued.receipt
        return continued.windows


def rank_shares(
    chunks: Sequence[Chunk], num_ranks: int, *, sequence_parallel: int = 1
) -> list[RankShare]:
    """Deal the rollouts of scored chunks to the learner ranks, by their lengths.

    So many successive ranks share their sequences, and have the same rollouts.
    """
    rollout_ids: list[str] = []
    scored: list[Ref[ScoredRollout]] = []
    probe_sets: list[Ref[ProbeSet]] = []
    takeovers: list[Ref[Takeover | None]] = []
    num_tokens: list[int] = []
    for chunk in chunks:
        lengths = chunk.takeover or chunk.score
        assert lengths is not None
        rollout_ids += chunk.rollout_ids
        scored += chunk.scored
        probe_sets += chunk.probe_sets
        takeovers += chunk.takeovers
        num_tokens += lengths.num_sequence_tokens
    return [
        RankShare(
            rollout_ids=tuple(rollout_ids[i] for i in indices),
            scored=tuple(scored[i] for i in indices),
            probe_sets=tuple(probe_sets[i] for i in indices if probe_sets),
            takeovers=tuple(takeovers[i] for i in indices if takeovers),
        )
        for indices in deal_to_ranks(num_tokens, num_ranks // sequence_parallel)
        for _ in range(sequence_parallel)
    ]
