"""Figure 3: one fork, token by token, before and after every update of both methods."""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.errors import UserError
from topd_ray.messages import CandidateSet, Ints, ProbeSet, Prompt, Rollout, TopkSignal
from topd_ray.prompts import PromptRecord, Turn, tokenize_records
from topd_ray.reports.case_figures import continuation_plot, fork_plot
from topd_ray.reports.case_text import as_written
from topd_ray.reports.provenance import make_provenance
from topd_ray.reports.report import Cell, Report, Table, write_report
from topd_ray.studies.config import CaseConfig, StudyConfig
from topd_ray.studies.local_stages import Lab
from topd_ray.studies.prefixes import (
    Prefix,
    divergent_rows,
    make_prefixes,
    window_batch,
)
from topd_ray.studies.window_learner import LocalLearner

logger = logging.getLogger(__name__)

METHODS = {"opd": "OPD", "topd": "TOPD"}

Ranked = tuple[tuple[str, float], ...]
"""Likeliest tokens with their probabilities, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One position of a continuation."""

    token: str
    student: Ranked
    teacher: Ranked
    p_student: float
    p_teacher: float
    """What either gives to `token`, in the context of all tokens before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The student's greedy continuation at one moment."""

    method: str
    """`before`, `OPD` or `TOPD`."""
    updates: int
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """For the eye."""
        return "before" if self.updates == 0 else f"{self.method} {self.updates}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fork and what became of it."""

    prompt: str
    prefix: str
    """The student's response up to the fork."""
    own: tuple[str, ...]
    """The rollout's tokens from the fork on."""
    teacher: tuple[str, ...]
    d_ot: float
    loss: float
    states: tuple[State, ...]


def run(study: StudyConfig) -> None:
    """Find the fork, follow it, and write the report. Raises UserError where there is
    none.
    """
    start = time.perf_counter()
    config = study.load_run(["teacher.signal=hidden"])
    if config.objective.lambda_traj == 0:
        raise UserError(
            "objective.lambda_traj=0: the study shows OPD beside TOPD; add"
            " run.method=topd to the study's overrides"
        )
    lab = Lab(config)
    try:
        fork = _find_fork(lab, study.case)
        logger.info("fork at %s, D_OT %.3f", fork.name, fork.d_ot)
        case = _follow(lab, study, fork)
    finally:
        lab.close()
    section = study.case.model_dump(mode="json") | {
        "correction": study.correction.model_dump(mode="json")
    }
    wall_s = time.perf_counter() - start
    provenance = make_provenance(config, section, study_seed=study.seed, wall_s=wall_s)
    report = _report(case, study, config.objective.lambda_traj)
    logger.info("written: %s", write_report(report, study.folder, provenance))


def _find_fork(lab: Lab, settings: CaseConfig) -> Prefix:
    """The uncut window with the largest D_OT among the probed."""
    prompts = (
        [_given_prompt(lab, settings.prompt)]
        if settings.prompt is not None
        else lab.prompts(settings.num_prompts)
    )
    rollouts = lab.roll_out(prompts)
    candidates = lab.candidates(lab.score(rollouts))
    best: tuple[float, CandidateSet, ProbeSet, int] | None = None
    for found, probe in zip(candidates, lab.probe(candidates), strict=True):
        for row in divergent_rows(found, probe, 0.0):
            if best is None or probe.d_ot_W[row] > best[0]:
                best = float(probe.d_ot_W[row]), found, probe, int(row)
    if best is None:
        raise UserError(
            f"no fork in {len(rollouts)} rollouts: student and teacher never part;"
            " raise case.num_prompts or candidates.fraction, or give another"
            " case.prompt"
        )
    (fork,) = make_prefixes(lab, rollouts, [best[1:]])
    return fork


def _given_prompt(lab: Lab, text: str) -> Prompt:
    context = lab.config.objective.context
    if context != "plain":
        raise UserError(
            f"case.prompt with objective.context={context}: a given prompt brings no"
            " reference for the teacher to read; leave it out, or set"
            " objective.context=plain"
        )
    record = PromptRecord(prompt_id="given", turns=(Turn("user", text),), answer=None)
    (kept, *_), _ = tokenize_records(
        [record], folder=lab.student_folder, max_tokens=lab.config.prompts.max_tokens
    )
    return Prompt(
        prompt_id="given", position=0, token_ids_P=kept.token_ids_P, answer=None
    )


def _follow(lab: Lab, study: StudyConfig, fork: Prefix) -> Case:
    learner = LocalLearner(
        lab.config.learner,
        student_folder=lab.student_folder,
        teacher_folder=lab.teacher_folder,
        lr=study.correction.lr,
        lambda_traj=lab.config.objective.lambda_traj,
    )
    engine = lab.open_student()
    try:
        states = [_look(lab, engine, fork, study.case, method="before", updates=0)]
        for method, name in METHODS.items():
            batch = window_batch(fork, lab.config.objective, with_plan=method == "topd")
            for update in range(1, study.correction.updates + 1):
                learner.update(batch)
                engine.load_weights(learner.weights())
                states.append(
                    _look(lab, engine, fork, study.case, method=name, updates=update)
                )
            learner.restore()
    finally:
        engine.close()
    shown = study.case.positions
    words = lab.tokenizer
    return Case(
        prompt=words.decode(fork.found.prompt_ids_P),
        prefix=words.decode(fork.found.response_ids_N[: fork.position]),
        own=_words(words, fork.window.rollout.response_ids_N[:shown]),
        teacher=_words(words, fork.teacher_ids[:shown]),
        d_ot=fork.d_ot,
        loss=float(fork.found.losses_W[0]),
        states=tuple(states),
    )


def _look(
    lab: Lab,
    engine: GenerationEngine,
    fork: Prefix,
    settings: CaseConfig,
    *,
    method: str,
    updates: int,
) -> State:
    """Continue greedily, and ask the teacher about every token on the way."""
    (said,) = engine.generate(
        [
            GenerationRequest(
                request_id=fork.name,
                prompt_ids=fork.token_ids,
                max_tokens=settings.positions,
                temperature=0.0,
                top_p=1.0,
                seed=0,
                num_top=settings.top,
            )
        ]
    )
    (read,) = lab.read([_as_rollout(fork, said)], top=settings.top)
    assert isinstance(read.signal, TopkSignal)
    steps = tuple(
        Step(
            token=_word(lab.tokenizer, int(said.token_ids_N[i])),
            student=_ranked(lab.tokenizer, said.top_ids_NM[i], said.top_logp_NM[i]),
            teacher=_ranked(
                lab.tokenizer, read.signal.ids_NM[i], read.signal.logq_NM[i]
            ),
            p_student=math.exp(float(said.logp_N[i])),
            p_teacher=math.exp(-float(read.token_loss_N[i])),
        )
        for i in range(len(said.token_ids_N))
    )
    return State(method=method, updates=updates, steps=steps)


def _as_rollout(fork: Prefix, said: Generation) -> Rollout:
    window = fork.window.rollout
    return Rollout(
        rollout_id=window.rollout_id,
        prompt_id=window.prompt_id,
        position=0,
        policy_version=0,
        prompt_ids_P=window.prompt_ids_P,
        teacher_prompt_ids_P=window.teacher_prompt_ids_P,
        response_ids_N=said.token_ids_N,
        logp_N=said.logp_N,
        top_ids_NM=said.top_ids_NM,
        top_logp_NM=said.top_logp_NM,
        finish_reason=said.finish_reason,
    )


def _ranked(tokenizer: Any, ids_M: Ints, logp_M: np.ndarray) -> Ranked:
    return tuple(
        (_word(tokenizer, int(token)), math.exp(float(logp)))
        for token, logp in zip(ids_M, logp_M, strict=True)
        if token >= 0
    )


def _words(tokenizer: Any, ids: Ints) -> tuple[str, ...]:
    return tuple(_word(tokenizer, int(token)) for token in ids)


def _word(tokenizer: Any, token: int) -> str:
    """One token as text, with its white space made visible where it is all there is."""
    text: str = tokenizer.decode([token])
    return text.strip() or repr(text)[1:-1].replace(" ", "␣") or "∅"


def _report(case: Case, study: StudyConfig, lambda_traj: float) -> Report:
    settings = study.correction
    first = case.teacher[0]
    forked = {
        name: next(
            (
                s.updates
                for s in case.states
                if s.method == name and s.steps[0].token == first
            ),
            None,
        )
        for name in METHODS.values()
    }
    said = {
        name: (
            f"never in {settings.updates} updates"
            if after is None
            else f"after update {after}"
        )
        for name, after in forked.items()
    }
    return Report(
        study="case",
        title="One fork, token by token (figure 3)",
        summary=[
            (
                f"The probed window with the largest D_OT ({case.d_ot:.3f}, token loss"
                f" {case.loss:.2f} nats). Each row is the student's greedy continuation"
                f" from the same prefix: before, and after each of {settings.updates}"
                f" updates on its own window at learning rate {settings.lr:g}, by OPD"
                f" and, from the same start, by TOPD (lambda {lambda_traj:g})."
            ),
            (
                f"The teacher would go on with `{first}`. The student says so first: by"
                f" OPD {said['OPD']}, by TOPD {said['TOPD']}."
            ),
        ],
        text=as_written(case),
        tables=[_table(case)],
        plots=[continuation_plot(case), fork_plot(case)],
        numbers={"case": case},
    )


def _table(case: Case) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (state.method, state.updates, index, who, rank, token, p, step.token)
        for state in case.states
        for index, step in enumerate(state.steps)
        for who, ranked in (("student", step.student), ("teacher", step.teacher))
        for rank, (token, p) in enumerate(ranked, start=1)
    ]
    return Table(
        name="tokens",
        title="Every token",
        columns=(
            "method",
            "updates",
            "position",
            "model",
            "rank",
            "token",
            "p",
            "said",
        ),
        rows=rows,
        shown=False,
    )


__all__ = ["Case", "Ranked", "State", "Step", "run"]
