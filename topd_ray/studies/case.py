"""Figure 3: one fork, token by token, before and after every update of both methods."""

import logging
import math
import time
from typing import Any

import numpy as np

from topd_ray.contexts import student_chat
from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.errors import UserError
from topd_ray.inputs.prompts import teacher_side
from topd_ray.messages import CandidateSet, Ints, ProbeSet, Prompt, Rollout, TopkSignal
from topd_ray.prompts import PromptRecord, Turn, tokenize_records
from topd_ray.reports.case_tables import describe
from topd_ray.reports.case_types import (
    METHODS,
    Case,
    CaseState,
    CaseStep,
    RankedTokens,
)
from topd_ray.reports.provenance import make_provenance
from topd_ray.reports.report import write_report
from topd_ray.studies.config import CaseConfig, StudyConfig
from topd_ray.studies.local_stages import LocalStages
from topd_ray.studies.prefixes import (
    Prefix,
    divergent_rows,
    make_prefixes,
    window_batch,
)
from topd_ray.studies.window_learner import WindowLearner

logger = logging.getLogger(__name__)


def run(study: StudyConfig) -> None:
    """Find the fork, follow it, and write the report.

    Raises UserError where student and teacher never differ.
    """
    start = time.perf_counter()
    config = study.load_run(["teacher.signal=hidden"])
    if config.objective.lambda_traj == 0:
        raise UserError(
            "objective.lambda_traj=0: the study shows OPD beside TOPD; add"
            " run.method=topd to the study's overrides"
        )
    stages = LocalStages(config)
    try:
        fork = _find_fork(stages, study.case)
        logger.info("fork at %s, D_OT %.3f", fork.name, fork.d_ot)
        case = _follow(stages, study, fork)
    finally:
        stages.close()
    section = study.case.model_dump(mode="json") | {
        "correction": study.correction.model_dump(mode="json")
    }
    wall_s = time.perf_counter() - start
    provenance = make_provenance(config, section, study_seed=study.seed, wall_s=wall_s)
    report = describe(
        case,
        updates=study.correction.updates,
        lr=study.correction.lr,
        lambda_traj=config.objective.lambda_traj,
    )
    logger.info("written: %s", write_report(report, study.folder, provenance))


def _find_fork(stages: LocalStages, settings: CaseConfig) -> Prefix:
    """Return the prefix of the uncut window with the largest D_OT."""
    if settings.prompt is None:
        prompts = stages.prompts(settings.num_prompts)
    else:
        prompts = [_given_prompt(stages, settings.prompt)]
    rollouts = stages.roll_out(prompts)
    candidate_sets = stages.candidates(stages.score(rollouts))
    probe_sets = stages.probe(candidate_sets)
    largest = -math.inf
    best: tuple[CandidateSet, ProbeSet, int] | None = None
    for candidates, probe_set in zip(candidate_sets, probe_sets, strict=True):
        # Any distance will do here, since the largest is taken.
        for row in divergent_rows(candidates, probe_set, threshold=0.0):
            if probe_set.d_ot_W[row] > largest:
                largest = float(probe_set.d_ot_W[row])
                best = (candidates, probe_set, int(row))
    if best is None:
        raise UserError(
            f"no fork in {len(rollouts)} rollouts: student and teacher never part;"
            " raise case.num_prompts or candidates.fraction, or give another"
            " case.prompt"
        )
    (fork,) = make_prefixes(stages, rollouts, [best])
    return fork


def _given_prompt(stages: LocalStages, text: str) -> Prompt:
    context = stages.config.objective.context
    if context != "plain":
        raise UserError(
            f"case.prompt with objective.context={context}: a given prompt brings no"
            " reference for the teacher to read; leave it out, or set"
            " objective.context=plain"
        )
    record = PromptRecord(prompt_id="given", turns=(Turn("user", text),), answer=None)
    chat = student_chat(stages.config, stages.student_folder)
    (kept, *_), _ = tokenize_records(
        [record],
        chat=chat,
        max_tokens=stages.config.prompts.max_tokens,
        side=teacher_side(stages.config, chat, stages.teacher_folder),
    )
    return kept


def _follow(stages: LocalStages, study: StudyConfig, fork: Prefix) -> Case:
    """Return the continuations before and after every update of both methods."""
    objective = stages.config.objective
    learner = WindowLearner(
        stages.config.learner,
        student_folder=stages.student_folder,
        teacher_folder=stages.teacher_folder,
        lr=study.correction.lr,
        lambda_traj=objective.lambda_traj,
    )
    engine = stages.open_student()
    try:
        before = _continue(stages, engine, fork, study.case)
        states = [CaseState(method="before", updates=0, steps=before)]
        for method, name in METHODS.items():
            batch = window_batch(fork, objective, with_plan=method == "topd")
            for update in range(1, study.correction.updates + 1):
                learner.update(batch)
                engine.load_weights(learner.weights())
                steps = _continue(stages, engine, fork, study.case)
                states.append(CaseState(method=name, updates=update, steps=steps))
            # The next method starts from the same weights as this one.
            learner.restore()
    finally:
        engine.close()
    shown = study.case.positions
    tokenizer = stages.tokenizer
    candidate = fork.candidate
    return Case(
        prompt=tokenizer.decode(candidate.prompt_ids_P),
        prefix=tokenizer.decode(candidate.response_ids_N[: fork.position]),
        own=_words(tokenizer, fork.window.rollout.response_ids_N[:shown]),
        teacher=_words(tokenizer, fork.teacher_ids[:shown]),
        d_ot=fork.d_ot,
        loss=fork.loss,
        states=tuple(states),
    )


def _continue(
    stages: LocalStages, engine: GenerationEngine, fork: Prefix, settings: CaseConfig
) -> tuple[CaseStep, ...]:
    """Decode greedily from the fork, and let the teacher read every token."""
    request = GenerationRequest(
        request_id=fork.name,
        prompt_ids=fork.token_ids,
        max_tokens=settings.positions,
        temperature=0.0,
        top_p=1.0,
        seed=0,
        num_top=settings.top,
    )
    (generation,) = engine.generate([request])
    (reading,) = stages.read([_as_rollout(fork, generation)], top=settings.top)
    # The teacher reads what the student decodes now, not what the rollout said.
    signal = reading.signal
    assert isinstance(signal, TopkSignal)
    tokenizer = stages.tokenizer
    return tuple(
        CaseStep(
            token=_word(tokenizer, int(token)),
            student=_ranked(
                tokenizer, generation.top_ids_NM[place], generation.top_logp_NM[place]
            ),
            teacher=_ranked(tokenizer, signal.ids_NM[place], signal.logq_NM[place]),
            p_student=math.exp(float(generation.logp_N[place])),
            p_teacher=math.exp(-float(reading.token_loss_N[place])),
        )
        for place, token in enumerate(generation.token_ids_N)
    )


def _as_rollout(fork: Prefix, generation: Generation) -> Rollout:
    window = fork.window.rollout
    return Rollout(
        rollout_id=window.rollout_id,
        prompt_id=window.prompt_id,
        position=0,
        policy_version=0,
        prompt_ids_P=window.prompt_ids_P,
        teacher_prompt_ids_P=window.teacher_prompt_ids_P,
        response_ids_N=generation.token_ids_N,
        logp_O=generation.logp_N,
        top_ids_OM=generation.top_ids_NM,
        top_logp_OM=generation.top_logp_NM,
        finish_reason=generation.finish_reason,
    )


def _ranked(tokenizer: Any, ids_M: Ints, logp_M: np.ndarray) -> RankedTokens:
    """Return tokens with their probabilities; padding (ids below 0) is left out."""
    return tuple(
        (_word(tokenizer, int(token)), math.exp(float(logp)))
        for token, logp in zip(ids_M, logp_M, strict=True)
        if token >= 0
    )


def _words(tokenizer: Any, ids: Ints) -> tuple[str, ...]:
    return tuple(_word(tokenizer, int(token)) for token in ids)


def _word(tokenizer: Any, token: int) -> str:
    """Return one token as text; one of white space alone with its spaces marked."""
    text: str = tokenizer.decode([token])
    return text.strip() or repr(text)[1:-1].replace(" ", "␣") or "∅"


__all__ = ["run"]
