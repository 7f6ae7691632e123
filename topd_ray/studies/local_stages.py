"""A run's student and teacher, opened in this process, and the stages over them."""

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from topd_ray.candidates import find_candidates
from topd_ray.config import Config, ProbeConfig
from topd_ray.config.stages import Solver
from topd_ray.engines.open import open_generation, open_teacher
from topd_ray.engines.protocols import RolloutEngine, TeacherEngine
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
from topd_ray.models.architecture import check_tensors
from topd_ray.models.folder import check_folder
from topd_ray.models.refusals import check_logits
from topd_ray.models.roles import resolve_student, resolve_teacher
from topd_ray.probe import ProbeActor, continue_from
from topd_ray.rollout import RolloutActor
from topd_ray.teacher import TeacherActor
from topd_ray.transport import TransportProblem


class LocalStages:
    """Prompt -> Rollout -> ScoredRollout -> CandidateSet -> ProbeSet, without Ray.

    Each method calls the worker class of its stage; engines are opened when they are
    first needed. Raises UserError where both back ends are `vllm`: a process holds one
    vLLM engine at most.
    """

    def __init__(self, config: Config, *, with_entropy: bool = False) -> None:
        """`with_entropy`: whether scored rollouts carry the teacher's entropy."""
        self.config = config
        self._with_entropy = with_entropy
        backends = config.rollout.engine.backend, config.teacher.engine.backend
        if backends == ("vllm", "vllm"):
            raise UserError(
                "rollout.engine.backend=vllm and teacher.engine.backend=vllm: a study"
                " holds student and teacher in one process, which holds one vLLM"
                " engine at most; add rollout.engine.backend=hf to the study's"
                " overrides"
            )
        self.student_folder = resolve_student(config)
        self.teacher_folder = resolve_teacher(config)
        for folder, role in (
            (self.student_folder, "student"),
            (self.teacher_folder, "teacher"),
        ):
            check_folder(folder, role=role)
            check_logits(folder, role=role)
            check_tensors(folder, role=role)

    def prompts(self, count: int) -> list[Prompt]:
        """Return the first `count` prompts of the run's order, at most one epoch."""
        source, _ = load_source(
            self.config, student=self.student_folder, teacher=self.teacher_folder
        )
        return source.take(min(count, len(source)))

    def roll_out(self, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Return `rollout.samples_per_prompt` responses a prompt, in order."""
        requests = rollout_requests(prompts, self.config.rollout.samples_per_prompt)
        chunks = self._student.roll_out(requests, policy_version=0)
        # Rollouts come in the order in which they finish.
        rollouts = itertools.chain.from_iterable(chunks)
        return sorted(rollouts, key=lambda rollout: rollout.rollout_id)

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Return the rollouts with the run's signal and the loss of candidates."""
        return self._teacher.score(rollouts)

    def read(self, rollouts: Sequence[Rollout], *, top: int) -> list[ScoredRollout]:
        """Return the teacher's `top` likeliest ids at each position of the rollouts.

        The token loss is the teacher's -log p of the rollout's own token, in nats.
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
        """Return the high-loss positions of each rollout.

        With `controls`, as many random and as many low-loss positions come with them.
        """
        return [
            find_candidates(
                rollout,
                self.config.candidates,
                controls=(RANDOM, LOW) if controls else (),
                run_seed=self.config.run.seed,
            )
            for rollout in scored
        ]

    def probe(
        self, candidates: Sequence[CandidateSet], *, temperature: float | None = None
    ) -> list[ProbeSet]:
        """Decode both continuations and solve the transport, as the run does.

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
        centred: bool | None = None,
    ) -> list[ProbeSet]:
        """Solve the transport of the teacher's recorded continuations once more.

        A setting that is None stays the run's. The student's continuations are the
        recorded ones too, or `student_ids`: one (W, K) array per rollout.
        """
        changes = {
            "window": window,
            "solver": solver,
            "epsilon": epsilon,
            "embedding": embedding,
            "centred": centred,
        }
        config = self.config.probe.model_copy(
            update={name: value for name, value in changes.items() if value is not None}
            | {"student": "resample"}  # else the prober reads the rollout's own tokens
        )
        if student_ids is None:
            student_ids = [probe_set.student_ids_WK for probe_set in probes]
        teacher_ids = [probe_set.teacher_ids_WK for probe_set in probes]
        # Greedy decoding, and any whose seed is the request's, decodes the beginning of
        # a longer continuation when it decodes fewer tokens.
        return self._prober(config).probe(
            candidates,
            _shortened(teacher_ids, config.window),
            _shortened(student_ids, config.window),
        )

    def ground_costs(self, probes: Sequence[ProbeSet]) -> TransportProblem:
        """Return the ground cost (D5) between the tokens of all windows, in order."""
        return self._prober(self.config.probe).ground_costs(
            np.concatenate([probe_set.student_ids_WK for probe_set in probes]),
            np.concatenate([probe_set.teacher_ids_WK for probe_set in probes]),
        )

    def open_student(self) -> RolloutEngine:
        """Return one more student engine, whose weights the caller may change.

        The caller closes it.
        """
        return open_generation(
            self.student_folder,
            self.config.rollout.engine,
            max_model_len=self.config.student_context_tokens,
            seed=self.config.run.seed,
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.student_folder, local_files_only=True)

    def close(self) -> None:
        """Free the engines that were opened."""
        for name in ("_student_engine", "_teacher_engine"):
            # cached_property keeps its value there: an engine that no stage needed is
            # not opened in order to be closed.
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
            with_entropy=self._with_entropy,
        )

    @cached_property
    def _student_engine(self) -> RolloutEngine:
        return self.open_student()

    @cached_property
    def _teacher_engine(self) -> TeacherEngine:
        return open_teacher(
            self.teacher_folder,
            self.config.teacher.engine,
            max_model_len=self.config.teacher_context_tokens,
            seed=self.config.run.seed,
        )


def _shortened(windows: Sequence[Ints], window: int) -> list[Ints]:
    """Return the first `window` tokens of each (W, K) array."""
    return [np.ascontiguousarray(ids_WK[:, :window]) for ids_WK in windows]


__all__ = ["LocalStages"]
