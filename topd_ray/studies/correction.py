"""Section 5.2: a few updates on one divergent window, then the same prefix once more.

Both methods train on the student's own window with the reverse KL of the live teacher;
TOPD adds lambda L_traj with the window's transport plan. As the paper can also be read,
both are then tried on the teacher's continuation as the window. Nothing outside the
window has a gradient, and weights and optimizer are put back exactly before the next
method and the next prefix.
"""

import json
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from topd_ray.config import Config
from topd_ray.errors import UserError
from topd_ray.messages import PAD, Ints
from topd_ray.reports.correction_tables import Correction, Outcome, analyse, common_lead
from topd_ray.reports.provenance import config_hash, make_provenance
from topd_ray.reports.report import write_report
from topd_ray.studies.config import CorrectionConfig, StudyConfig
from topd_ray.studies.local_stages import Lab
from topd_ray.studies.prefixes import (
    Prefix,
    WindowOf,
    divergence_threshold,
    divergent_rows,
    make_prefixes,
    regenerate,
    window_batch,
)
from topd_ray.studies.window_learner import LocalLearner

logger = logging.getLogger(__name__)

METHODS = ("opd", "topd")
_LOG_EVERY = 10


def run(study: StudyConfig) -> None:
    """Correct, compare, and write the report; what was done before an interruption is
    kept.
    """
    start = time.perf_counter()
    # the full vocabulary on both sides, as in the paper, whatever the run itself learns
    # from
    config, settings = study.load_run(["teacher.signal=hidden"]), study.correction
    if config.objective.lambda_traj == 0:
        raise UserError(
            "objective.lambda_traj=0: the study compares OPD with TOPD; add"
            " run.method=topd to the study's overrides"
        )
    lab = Lab(config)
    try:
        prefixes, threshold = find_prefixes(lab, settings)
        logger.info("%d divergent prefixes, D_OT above %.3f", len(prefixes), threshold)
        results = [
            _correct_all(lab, study, prefixes, lr, on)
            for on in get_args(WindowOf)
            for lr in (settings.lr, *settings.other_lrs)
        ]
    finally:
        lab.close()
    report = analyse(
        prefixes, threshold, results, settings, config, study_seed=study.seed
    )
    section = settings.model_dump(mode="json")
    wall_s = time.perf_counter() - start
    provenance = make_provenance(config, section, study_seed=study.seed, wall_s=wall_s)
    logger.info("written: %s", write_report(report, study.folder, provenance))


def find_prefixes(lab: Lab, settings: CorrectionConfig) -> tuple[list[Prefix], float]:
    """At most one a rollout, in the run's order, and the D_OT that counts as divergent.

    Raises UserError where there is none.
    """
    rollouts = lab.roll_out(lab.prompts(settings.num_prompts))
    candidates = lab.candidates(lab.score(rollouts))
    probes = lab.probe(candidates)
    chosen = []
    if any(len(one.positions_W) for one in probes):
        threshold = divergence_threshold(probes, lab.config.windows.divergence.quantile)
        for found, probe in zip(candidates, probes, strict=True):
            rows = divergent_rows(found, probe, threshold)
            chosen += [(found, probe, int(row)) for row in rows[:1]]
    if not chosen:
        raise UserError(
            f"no divergent prefix in {len(rollouts)} rollouts; raise the study's"
            " num_prompts or candidates.fraction"
        )
    return make_prefixes(lab, rollouts, chosen[: settings.num_prefixes]), threshold


def _correct_all(
    lab: Lab, study: StudyConfig, prefixes: Sequence[Prefix], lr: float, on: WindowOf
) -> Correction:
    settings = study.correction
    engine = lab.open_student()
    again = partial(
        regenerate,
        engine,
        window=lab.config.probe.window,
        temperature=settings.temperature,
        seed=study.seed,
    )
    learner = LocalLearner(
        lab.config.learner,
        student_folder=lab.student_folder,
        teacher_folder=lab.teacher_folder,
        lr=lr,
        lambda_traj=lab.config.objective.lambda_traj,
    )
    kept = _Kept(_kept_file(study, lab.config, f"{on}-lr{lr:g}"))
    try:
        spoken = {"before": again(prefixes)} | {method: [] for method in METHODS}
        for count, prefix in enumerate(prefixes, start=1):
            for method in METHODS:
                if (ids := kept.get(prefix, method)) is None:
                    batch = window_batch(
                        prefix, lab.config.objective, with_plan=method == "topd", on=on
                    )
                    for _ in range(settings.updates):
                        learner.update(batch)
                    engine.load_weights(learner.weights())
                    learner.restore()
                    (ids,) = again([prefix])
                    kept.add(prefix, method, ids)
                spoken[method].append(ids)
            if count % _LOG_EVERY == 0 or count == len(prefixes):
                logger.info(
                    "%s's window, lr %g: %d of %d prefixes",
                    on,
                    lr,
                    count,
                    len(prefixes),
                )
    finally:
        engine.close()
    return Correction(
        lr=lr,
        on=on,
        states={state: outcome(lab, prefixes, ids) for state, ids in spoken.items()},
    )


def outcome(lab: Lab, prefixes: Sequence[Prefix], spoken: Sequence[Ints]) -> Outcome:
    """Distances of continuations to the teacher's, solved as the probe solves them."""
    window = lab.config.probe.window
    padded = [np.full((1, window), PAD, np.int32) for _ in spoken]
    for row_1K, ids in zip(padded, spoken, strict=True):
        row_1K[0, : len(ids)] = ids
    probes = lab.probe_again(
        [prefix.found for prefix in prefixes],
        [prefix.probe for prefix in prefixes],
        student_ids=padded,
    )
    return Outcome(
        d_ot_P=np.array([one.d_ot_W[0] for one in probes], np.float32),
        lead_P=np.array(
            [
                common_lead(prefix.teacher_ids, ids)
                for prefix, ids in zip(prefixes, spoken, strict=True)
            ],
            np.int32,
        ),
    )


class _Kept:
    """Continuations that an earlier, interrupted study has made: one JSON line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str], list[int]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in (
            path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()
        ):
            if line.endswith("}"):  # the last one may be torn
                one = json.loads(line)
                self._known[one["prefix"], one["method"]] = one["ids"]

    def get(self, prefix: Prefix, method: str) -> Ints | None:
        ids = self._known.get((prefix.name, method))
        return None if ids is None else np.array(ids, np.int32)

    def add(self, prefix: Prefix, method: str, ids: Ints) -> None:
        line = json.dumps(
            {"prefix": prefix.name, "method": method, "ids": ids.tolist()}
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}")


def _kept_file(study: StudyConfig, config: Config, part: str) -> Path:
    section = study.correction.model_dump(mode="json")
    name = config_hash(config, section, study_seed=study.seed)
    return study.folder / "cache" / f"correction-{name}-{part}.jsonl"


__all__ = ["find_prefixes", "outcome", "run"]
