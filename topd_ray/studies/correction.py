"""Section 5.2: a few updates on one divergent window, then the same prefix again.

Both methods train on the student's own window with the reverse KL of the live teacher;
TOPD adds lambda L_traj with the window's transport plan. The paper can also be read so
that the teacher's continuation is the window: both methods are tried on that too.
Nothing outside the window has a gradient. Weights and optimizer are restored exactly
before the next method and the next prefix.
"""

import json
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from topd_ray.config import Config
from topd_ray.errors import UserError
from topd_ray.messages import PAD, Ints
from topd_ray.reports.correction_tables import (
    CorrectedPrefix,
    Correction,
    Outcome,
    WindowOf,
    analyse,
    common_lead,
)
from topd_ray.reports.gradient_table import GradientPair
from topd_ray.reports.provenance import config_hash, make_provenance
from topd_ray.reports.report import write_report
from topd_ray.studies.config import CorrectionConfig, StudyConfig
from topd_ray.studies.local_stages import LocalStages
from topd_ray.studies.prefixes import (
    Prefix,
    divergence_threshold,
    divergent_rows,
    make_prefixes,
    regenerate,
    window_batch,
)
from topd_ray.studies.window_gradients import gradient_pairs
from topd_ray.studies.window_learner import WindowLearner

logger = logging.getLogger(__name__)

METHODS = ("opd", "topd")
_LOG_EVERY = 10


def run(study: StudyConfig) -> None:
    """Correct every prefix by both methods, compare them, and write the report.

    Continuations that an interrupted study has made are used again.
    """
    start = time.perf_counter()
    settings = study.correction
    # The full vocabulary on both sides, as in the paper, for any signal of the run.
    config = study.load_run(["teacher.signal=hidden"])
    if config.objective.lambda_traj == 0:
        raise UserError(
            "objective.lambda_traj=0: the study compares OPD with TOPD; add"
            " run.method=topd to the study's overrides"
        )
    stages = LocalStages(config)
    try:
        prefixes, threshold = find_prefixes(stages, settings)
        logger.info("%d divergent prefixes, D_OT above %.3f", len(prefixes), threshold)
        stages.close()  # its engines: the learner needs their memory
        logger.info("gradients of both losses")
        pairs = _gradients(stages, prefixes, settings)
        results = []
        for on in settings.windows_of:
            for lr in (settings.lr, *settings.other_lrs):
                results.append(_correct_all(stages, study, prefixes, lr, on))
    finally:
        stages.close()
    report = analyse(
        [_before_updates(prefix) for prefix in prefixes],
        pairs,
        results,
        config,
        threshold=threshold,
        study_seed=study.seed,
        resamples=settings.resamples,
        updates=settings.updates,
        temperature=settings.temperature,
    )
    section = settings.model_dump(mode="json")
    wall_s = time.perf_counter() - start
    provenance = make_provenance(config, section, study_seed=study.seed, wall_s=wall_s)
    logger.info("written: %s", write_report(report, study.folder, provenance))


def find_prefixes(
    stages: LocalStages, settings: CorrectionConfig
) -> tuple[list[Prefix], float]:
    """Return divergent prefixes in the run's order, and the threshold of their D_OT.

    There is at most one a rollout. Raises UserError where there is none at all.
    """
    rollouts = stages.roll_out(stages.prompts(settings.num_prompts))
    candidate_sets = stages.candidates(stages.score(rollouts))
    probe_sets = stages.probe(candidate_sets)
    chosen = []
    if any(len(probe_set.positions_W) for probe_set in probe_sets):
        quantile = stages.config.windows.divergence.quantile
        threshold = divergence_threshold(probe_sets, quantile)
        for candidates, probe_set in zip(candidate_sets, probe_sets, strict=True):
            rows = divergent_rows(candidates, probe_set, threshold)
            # One a rollout: windows of one rollout may overlap, and depend on each
            # other.
            chosen += [(candidates, probe_set, int(row)) for row in rows[:1]]
    if not chosen:
        raise UserError(
            f"no divergent prefix in {len(rollouts)} rollouts; raise the study's"
            " num_prompts or candidates.fraction"
        )
    return make_prefixes(stages, rollouts, chosen[: settings.num_prefixes]), threshold


def outcome(
    stages: LocalStages, prefixes: Sequence[Prefix], continuations: Sequence[Ints]
) -> Outcome:
    """Return the distances of continuations to the teacher's.

    They are solved as the probe solves them; there is one continuation a prefix.
    """
    window = stages.config.probe.window
    padded = []
    leads = []
    for prefix, ids in zip(prefixes, continuations, strict=True):
        row_1K = np.full((1, window), PAD, np.int32)
        row_1K[0, : len(ids)] = ids
        padded.append(row_1K)
        leads.append(common_lead(prefix.teacher_ids, ids))
    probe_sets = stages.probe_again(
        [prefix.candidate for prefix in prefixes],
        [prefix.probe for prefix in prefixes],
        student_ids=padded,
    )
    return Outcome(
        d_ot_P=np.array([probe_set.d_ot_W[0] for probe_set in probe_sets], np.float32),
        lead_P=np.array(leads, np.int32),
    )


def _gradients(
    stages: LocalStages, prefixes: Sequence[Prefix], settings: CorrectionConfig
) -> list[GradientPair]:
    learner = _learner(stages, settings.lr)
    return gradient_pairs(learner, prefixes, stages.config)


def _learner(stages: LocalStages, lr: float) -> WindowLearner:
    return WindowLearner(
        stages.config.learner,
        student_folder=stages.student_folder,
        teacher_folder=stages.teacher_folder,
        lr=lr,
        lambda_traj=stages.config.objective.lambda_traj,
    )


def _before_updates(prefix: Prefix) -> CorrectedPrefix:
    return CorrectedPrefix(
        prompt_id=prefix.prompt_id,
        rollout_id=prefix.candidate.rollout_id,
        position=prefix.position,
        loss=prefix.loss,
        d_ot=prefix.d_ot,
        lead=common_lead(prefix.teacher_ids, prefix.own_ids),
    )


def _correct_all(
    stages: LocalStages,
    study: StudyConfig,
    prefixes: Sequence[Prefix],
    lr: float,
    on: WindowOf,
) -> Correction:
    """Return the outcomes of all prefixes before any update and after each method."""
    settings = study.correction
    objective = stages.config.objective
    engine = stages.open_student()
    continue_all = partial(
        regenerate,
        engine,
        window=stages.config.probe.window,
        temperature=settings.temperature,
        seed=study.seed,
    )
    learner = _learner(stages, lr)
    cache = _Cache(_cache_file(study, stages.config, f"{on}-lr{lr:g}"))
    try:
        continuations = {"before": continue_all(prefixes)}
        continuations |= {method: [] for method in METHODS}
        for count, prefix in enumerate(prefixes, start=1):
            for method in METHODS:
                ids = cache.get(prefix, method)
                if ids is None:
                    with_plan = method == "topd"
                    batch = window_batch(prefix, objective, with_plan=with_plan, on=on)
                    for _ in range(settings.updates):
                        learner.update(batch)
                    engine.load_weights(learner.weights())
                    learner.restore()
                    (ids,) = continue_all([prefix])
                    cache.add(prefix, method, ids)
                continuations[method].append(ids)
            if count % _LOG_EVERY == 0 or count == len(prefixes):
                done = (on, lr, count, len(prefixes))
                logger.info("%s's window, lr %g: %d of %d prefixes", *done)
    finally:
        engine.close()
    states = {
        state: outcome(stages, prefixes, ids) for state, ids in continuations.items()
    }
    return Correction(lr=lr, on=on, states=states)


class _Cache:
    """Continuations that an interrupted study has made: one line of JSON each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str], list[int]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            # The last line is incomplete where the study was stopped while writing it.
            if line.endswith("}"):
                entry = json.loads(line)
                self._known[entry["prefix"], entry["method"]] = entry["ids"]

    def get(self, prefix: Prefix, method: str) -> Ints | None:
        """Return the continuation of a prefix after a method's updates, if known."""
        ids = self._known.get((prefix.name, method))
        return None if ids is None else np.array(ids, np.int32)

    def add(self, prefix: Prefix, method: str, ids: Ints) -> None:
        """Append a continuation to the file."""
        entry = {"prefix": prefix.name, "method": method, "ids": ids.tolist()}
        with self._path.open("a", encoding="utf-8") as file:
            # The line break comes first: it ends a line that was left incomplete.
            file.write(f"\n{json.dumps(entry)}")


def _cache_file(study: StudyConfig, config: Config, part: str) -> Path:
    section = study.correction.model_dump(mode="json")
    # A prefix is corrected in the same way, however many there are.
    for field in ("num_prompts", "num_prefixes", "resamples"):
        del section[field]
    name = config_hash(config, section, study_seed=study.seed)
    return study.folder / "cache" / f"correction-{name}-{part}.jsonl"


__all__ = ["find_prefixes", "outcome", "run"]
