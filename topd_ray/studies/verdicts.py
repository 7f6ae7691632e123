"""Which score tells a true fork from harmless wording, where the truth is known?

The high-loss positions of the student's rollouts are labelled by what the response
says, and judged by every score: those that the teacher's reading gives for free, and
the distances between continuations.
"""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from topd_ray.errors import UserError
from topd_ray.messages import CandidateSet, ProbeSet, ScoredRollout
from topd_ray.reports.provenance import make_provenance
from topd_ray.reports.report import Report, write_report
from topd_ray.reports.token_kinds import Spell
from topd_ray.reports.verdict_tables import JudgedWindows, Verdict, analyse
from topd_ray.studies.config import StudyConfig, VerdictsConfig
from topd_ray.studies.labels import Label, Labeller, TokenSpan, token_spans
from topd_ray.studies.local_stages import LocalStages
from topd_ray.studies.middle_layer import MiddleLayer
from topd_ray.studies.sum_labels import label_sums
from topd_ray.studies.toy_labels import label_toy
from topd_ray.studies.verdict_scores import (
    Scores,
    free_scores,
    state_distances,
    token_distances,
)

logger = logging.getLogger(__name__)

_LABELLERS: dict[str, tuple[Labeller, str]] = {
    "toy": (
        label_toy,
        "a fork is the first wrong word of a step that changes the value of the"
        " expression; wording is a connective, verb or link of the toy world.",
    ),
    "sums": (
        label_sums,
        "a fork is the token at which the result of a written sum becomes wrong;"
        " wording is a token without digits and operators before a sum that is right.",
    ),
}
_CHARACTERS_BEFORE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labelled:
    """The high-loss positions of a rollout whose truth is known, at least one."""

    scored: ScoredRollout
    candidates: CandidateSet
    labels: list[Label]
    text: str
    spans: list[TokenSpan]
    """Where the token of each position stands in the text."""


def run(study: StudyConfig) -> None:
    """Label, probe, and write the report into the study's folder.

    Raises UserError where the study file lacks the section, or no position is a fork or
    none is wording.
    """
    start = time.perf_counter()
    settings = study.verdicts
    if settings is None:
        raise UserError(
            "the study file has no `verdicts` section; configs/studies has an example"
        )
    config = study.load_run(list(settings.overrides))
    if max(settings.windows) > config.probe.window:
        raise UserError(
            f"verdicts.windows={max(settings.windows)} exceeds"
            f" probe.window={config.probe.window}: only so many tokens are decoded;"
            " lower it or raise probe.window"
        )
    stages = LocalStages(config, with_entropy=True)
    try:
        report = _report(stages, settings, seed=study.seed)
    finally:
        stages.close()
    section = settings.model_dump(mode="json")
    wall_s = time.perf_counter() - start
    provenance = make_provenance(config, section, study_seed=study.seed, wall_s=wall_s)
    logger.info("written: %s", write_report(report, study.folder, provenance))


def _report(stages: LocalStages, settings: VerdictsConfig, *, seed: int) -> Report:
    labeller, rule = _LABELLERS[settings.truth]
    prompts = [
        prompt
        for prompt in stages.prompts(settings.num_prompts)
        if re.fullmatch(settings.prompt_ids, prompt.prompt_id)
    ]
    logger.info("answering %d prompts", len(prompts))
    scored = stages.score(stages.roll_out(prompts))
    candidate_sets = stages.candidates(scored)
    labelled = list(
        _labelled(scored, candidate_sets, labeller, stages.tokenizer.decode)
    )
    _check_both(labelled)
    return analyse(
        _judged(labelled, _scores(stages, labelled, settings.windows)),
        num_high_loss=sum(len(found.positions_W) for found in candidate_sets),
        reference=Verdict("D_OT", max(settings.windows)),
        rule=rule,
        seed=seed,
        resamples=settings.resamples,
    )


def _labelled(
    scored: Sequence[ScoredRollout],
    candidate_sets: Sequence[CandidateSet],
    labeller: Labeller,
    spell: Spell,
) -> Iterator[_Labelled]:
    """Yield the rollouts that have a position of known truth."""
    for rollout, candidates in zip(scored, candidate_sets, strict=True):
        text, spans = token_spans(candidates.response_ids_N.tolist(), spell)
        labels = labeller(text, spans)
        known = [
            (row, int(t), label)
            for row, t in enumerate(candidates.positions_W)
            if (label := labels[t]) is not None
        ]
        if not known:
            continue
        rows = [row for row, _, _ in known]
        yield _Labelled(
            scored=rollout,
            candidates=replace(
                candidates,
                positions_W=candidates.positions_W[rows],
                losses_W=candidates.losses_W[rows],
                groups_W=candidates.groups_W[rows],
            ),
            labels=[label for _, _, label in known],
            text=text,
            spans=[spans[t] for _, t, _ in known],
        )


def _check_both(labelled: Sequence[_Labelled]) -> None:
    """Raise UserError where there is nothing to compare."""
    labels = [label for rollout in labelled for label in rollout.labels]
    for label in ("fork", "wording"):
        if label not in labels:
            raise UserError(
                f"none of {len(labels)} labelled windows is a {label}: raise"
                " verdicts.num_prompts, rollout.samples_per_prompt or"
                " candidates.fraction, or correct verdicts.truth"
            )


def _scores(
    stages: LocalStages, labelled: Sequence[_Labelled], windows: Sequence[int]
) -> Scores:
    """Return every score of all windows, in order."""
    candidate_sets = [rollout.candidates for rollout in labelled]
    epsilon = stages.config.probe.epsilon
    free = [free_scores(rollout.scored, rollout.candidates) for rollout in labelled]
    scores: Scores = {
        verdict: np.concatenate([one[verdict] for one in free]) for verdict in free[0]
    }
    logger.info("probing %d windows", len(next(iter(scores.values()))))
    probe_sets: list[ProbeSet] = stages.probe(candidate_sets)
    # The engines hold memory that the teacher's copy below may need.
    stages.close()
    scores |= token_distances(
        stages.ground_costs(probe_sets), probe_sets, windows=windows, epsilon=epsilon
    )
    middle = MiddleLayer(stages.teacher_folder, stages.config.teacher.engine)
    logger.info("reading the states behind %d layers", middle.depth)
    return scores | state_distances(
        middle, candidate_sets, probe_sets, windows=windows, epsilon=epsilon
    )


def _judged(labelled: Sequence[_Labelled], scores: Scores) -> JudgedWindows:
    windows = [
        (rollout, label, span)
        for rollout in labelled
        for label, span in zip(rollout.labels, rollout.spans, strict=True)
    ]
    return JudgedWindows(
        prompts=[rollout.scored.rollout.prompt_id for rollout, _, _ in windows],
        rollouts=[rollout.candidates.rollout_id for rollout, _, _ in windows],
        positions_W=np.concatenate([one.candidates.positions_W for one in labelled]),
        before=[
            rollout.text[max(0, start - _CHARACTERS_BEFORE) : start]
            for rollout, _, (start, _) in windows
        ],
        tokens=[rollout.text[start:end] for rollout, _, (start, end) in windows],
        is_fork_W=np.array([label == "fork" for _, label, _ in windows]),
        scores=scores,
    )


__all__ = ["run"]
