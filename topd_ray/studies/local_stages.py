"""The student and the teacher of a run, opened in this process, and the stages over
them.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from topd_ray.candidates import find_candidates
from topd_ray.config import Config, ProbeConfig
from topd_ray.config.stages import Solver
from topd_ray.engines.open import open_generation, open_teacher
from topd_ray.engines.protocols import GenerationEngine, TeacherEngine
from topd_ray.errors import UserError
from topd_ray.inputs.prompts import load_source
from topd_ray.messages import (
    LOW,
    RANDOM,
    CandidateSet,
    Ints,
    ProbeSet,
    Prompt,
    Rollout,
    ScoredRollout,
    rollout_requests,
)
from topd_ray.models.folder import check_folder
from topd_ray.models.refusals import check_logits
from topd_ray.models.roles import resolve_student, resolve_teacher
from topd_ray.probe import ProbeActor, continue_from
from topd_ray.rollout import RolloutActor
from topd_ray.teacher import TeacherActor


class Lab:
    """Prompt -> Rollout -> ScoredRollout -> CandidateSet -> ProbeSet, without Ray.

    Every arrow is the stage's own class; engines are opened when they are first needed.
    Raises UserError for another back end than `hf`: a process holds one vLLM engine at
    most.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        for field, engine in [
            ("rollout.engine", config.rollout.engine),
            ("teacher.engine", config.teacher.engine),
        ]:
            if engine.backend != "hf":
                raise UserError(
                    f"{field}.backend={engine.backend}: a study holds student and"
                    f" teacher in one process; add {field}.backend=hf to the study's"
                    " overrides"
                )
        self.student_folder = resolve_student(config)
        self.teacher_folder = resolve_teacher(config)
        check_folder(self.student_folder, role="student")
        check_folder(self.teacher_folder, role="teacher")
        check_logits(self.student_folder, role="student")
        check_logits(self.teacher_folder, role="teacher")

    def prompts(self, count: int) -> list[Prompt]:
        """The first `count` of the run's order, at most one epoch of them."""
        source, _ = load_source(
            self.config, student=self.student_folder, teacher=self.teacher_folder
        )
        return source.take(min(count, len(source)))

    def roll_out(self, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Return `rollout.samples_per_prompt` responses a prompt, in order."""
        requests = rollout_requests(prompts, self.config.rollout.samples_per_prompt)
        chunks = self._student.roll_out(requests, policy_version=0)
        return sorted(
            (one for chunk in chunks for one in chunk), key=lambda one: one.rollout_id
        )

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Whatever `teacher.signal` says, and the loss that picks candidates."""
        return self._teacher.score(rollouts)

    def read(self, rollouts: Sequence[Rollout], *, top: int) -> list[ScoredRollout]:
        """The teacher's `top` likeliest ids at each position, and its -log p of what is
        there.
        """
        reader = TeacherActor(
            self.config.teacher.model_copy(update={"signal": "topk", "top_k": top}),
            self.config.candidates.model_copy(update={"loss": "teacher_nll"}),
            self.teacher_folder,
            lambda: self._teacher_engine,
        )
        return reader.score(rollouts)

    def candidates(
        self, scored: Sequence[ScoredRollout], *, controls: bool = False
    ) -> list[CandidateSet]:
        """High-loss positions of each rollout; with `controls`, as many random and
        low-loss.
        """
        return [
            find_candidates(
                one,
                self.config.candidates,
                controls=(RANDOM, LOW) if controls else (),
                run_seed=self.config.run.seed,
            )
            for one in scored
        ]

    def probe(
        self, candidates: Sequence[CandidateSet], *, temperature: float | None = None
    ) -> list[ProbeSet]:
        """Decode both continuations and solve the transport, as the run would.

        `temperature` replaces `probe.teacher_temperature`.
        """
        config = self.config.probe
        if temperature is not None:
            config = config.model_copy(update={"teacher_temperature": temperature})
        fresh = None
        if config.student == "resample":
            fresh = self._student.resample(
                candidates, window=config.window, policy_version=0
            )
        continued = continue_from(
            self._teacher_engine, candidates, config, run_seed=self.config.run.seed
        )
        return self._prober(config).probe(candidates, continued.windows, fresh)

    def probe_again(
        self,
        candidates: Sequence[CandidateSet],
        probes: Sequence[ProbeSet],
        *,
        student_ids: Sequence[Ints] | None = None,
        window: int | None = None,
        solver: Solver | None = None,
        epsilon: float | None = None,
        embedding: Literal["teacher", "student"] | None = None,
    ) -> list[ProbeSet]:
        """The teacher's recorded continuations under another setting; what is None
        stays as it was.

        The student's are those on record too, or `student_ids`: one (W, K) array a
        rollout.
        """
        changes = {
            "window": window,
            "solver": solver,
            "epsilon": epsilon,
            "embedding": embedding,
        }
        config = self.config.probe.model_copy(
            update={name: value for name, value in changes.items() if value is not None}
            | {"student": "resample"}
        )
        fresh = (
            [one.student_ids_WK for one in probes]
            if student_ids is None
            else student_ids
        )
        # for greedy decoding, and for any whose seed is the request's, a continuation
        # of fewer tokens is the beginning of a longer one
        teacher = [one.teacher_ids_WK for one in probes]
        return self._prober(config).probe(
            candidates,
            *(
                [np.ascontiguousarray(ids_WK[:, : config.window]) for ids_WK in windows]
                for windows in (teacher, fresh)
            ),
        )

    def open_student(self) -> GenerationEngine:
        """One more student engine, whose weights its owner may change; the owner closes
        it.
        """
        return open_generation(
            self.student_folder,
            self.config.rollout.engine,
            max_model_len=self.config.student_context_tokens,
            seed=self.config.run.seed,
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The student's."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.student_folder, local_files_only=True)

    def close(self) -> None:
        """Free the engines that were opened."""
        for name in ("_student_engine", "_teacher_engine"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    def _prober(self, config: ProbeConfig) -> ProbeActor:
        return ProbeActor(
            config, self.teacher_folder, student_folder=self.student_folder
        )

    @cached_property
    def _student(self) -> RolloutActor:
        return RolloutActor(
            self.config.rollout,
            lambda: self._student_engine,
            run_seed=self.config.run.seed,
        )

    @cached_property
    def _teacher(self) -> TeacherActor:
        return TeacherActor(
            self.config.teacher,
            self.config.candidates,
            self.teacher_folder,
            lambda: self._teacher_engine,
        )

    @cached_property
    def _student_engine(self) -> GenerationEngine:
        return self.open_student()

    @cached_property
    def _teacher_engine(self) -> TeacherEngine:
        return open_teacher(
            self.teacher_folder,
            self.config.teacher.engine,
            max_model_len=self.config.teacher_context_tokens,
            seed=self.config.run.seed,
        )


def token_id(lab: Lab, word: str) -> int:
    """Id of a word that is one token of the student's tokenizer. Raises UserError."""
    ids = lab.tokenizer(word, add_special_tokens=False)["input_ids"]
    unknown = lab.tokenizer.unk_token_id
    if len(ids) != 1 or (ids[0] == unknown and word != lab.tokenizer.unk_token):
        raise UserError(
            f"probing.surface_tokens: {word!r} is {len(ids)} tokens of"
            f" {lab.student_folder}'s tokenizer, or none that it knows; name single"
            " tokens (a leading space may matter)"
        )
    return int(ids[0])


__all__ = ["Lab", "token_id"]
