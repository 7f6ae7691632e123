"""Section 2.1: does a high token loss mean that the two models diverge?

Equally many high-loss, random and low-loss positions of the student's rollouts are
probed as the run would probe them; then the same windows once more under other
settings.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from topd_ray.errors import UserError
from topd_ray.messages import HIGH, CandidateSet, ProbeSet, Rollout
from topd_ray.reports.probing_readings import readings_table
from topd_ray.reports.probing_tables import analyse
from topd_ray.reports.probing_windows import ProbedWindows, gather
from topd_ray.reports.provenance import make_provenance
from topd_ray.reports.report import Report, Table, write_report
from topd_ray.reports.token_kinds import find_kinds
from topd_ray.studies.config import ProbingConfig, StudyConfig
from topd_ray.studies.local_stages import LocalStages
from topd_ray.studies.target_masses import target_rows, targets_table

logger = logging.getLogger(__name__)


def run(study: StudyConfig) -> None:
    """Probe, compute, and write the report into the study's folder.

    Raises UserError where no position is a candidate.
    """
    start = time.perf_counter()
    config = study.load_run()
    settings = study.probing
    _check_windows(settings, config.probe.window)
    stages = LocalStages(config)
    try:
        report = _report(stages, study)
    finally:
        stages.close()
    section = settings.model_dump(mode="json")
    wall_s = time.perf_counter() - start
    provenance = make_provenance(config, section, study_seed=study.seed, wall_s=wall_s)
    logger.info("written: %s", write_report(report, study.folder, provenance))


def _report(stages: LocalStages, study: StudyConfig) -> Report:
    config = stages.config
    settings = study.probing
    rollouts = stages.roll_out(stages.prompts(settings.num_prompts))
    candidate_sets = stages.candidates(stages.score(rollouts), controls=True)
    prompts = {rollout.rollout_id: rollout.prompt_id for rollout in rollouts}
    num_windows = sum(len(candidates.positions_W) for candidates in candidate_sets)
    logger.info("probing %d windows", num_windows)
    probe_sets = stages.probe(candidate_sets)
    windows = gather(probe_sets, prompts)
    if not windows.in_group(HIGH).any():
        raise UserError(
            f"no candidate in {len(candidate_sets)} rollouts: raise"
            " candidates.fraction or probing.num_prompts, or lower"
            f" candidates.min_window={config.candidates.min_window}"
        )
    report = analyse(
        windows,
        _sensitivity(stages, settings, candidate_sets, probe_sets, prompts),
        config,
        study_seed=study.seed,
        resamples=settings.resamples,
        bins=settings.bins,
        kinds=find_kinds(windows.student_W, settings.kinds, stages.tokenizer.decode),
    )
    tables = list(report.tables)
    if config.probe.student != "resample":
        # Soft targets are compared with the teacher's view of the rollout's own tokens.
        tables.append(_targets(stages, rollouts, probe_sets, seed=study.seed))
    if settings.num_readings:
        tables.append(
            readings_table(
                candidate_sets,
                probe_sets,
                settings.kinds,
                stages.tokenizer.decode,
                count=settings.num_readings,
                seed=study.seed,
            )
        )
    return replace(report, tables=tables)


def _targets(
    stages: LocalStages,
    rollouts: Sequence[Rollout],
    probe_sets: Sequence[ProbeSet],
    *,
    seed: int,
) -> Table:
    """Return the soft targets of the windows above the run's own quantile of D_OT."""
    distances = [
        probe_set.d_ot_W[probe_set.groups_W == HIGH] for probe_set in probe_sets
    ]
    quantile = stages.config.windows.divergence.quantile
    # nan is the distance of a window with a non-finite cost.
    threshold = float(np.nanquantile(np.concatenate(distances), quantile))
    readings = {
        reading.rollout.rollout_id: reading for reading in stages.read(rollouts, top=1)
    }
    rows = target_rows(probe_sets, readings, threshold=threshold)
    return targets_table(rows, seed=seed)


def _sensitivity(
    stages: LocalStages,
    settings: ProbingConfig,
    candidate_sets: Sequence[CandidateSet],
    probe_sets: Sequence[ProbeSet],
    prompts: dict[str, str],
) -> list[tuple[str, ProbedWindows]]:
    """Return every setting's name and windows, the run's own first."""
    rows = [("as the run", gather(probe_sets, prompts))]
    for name, probe in _settings(stages, settings, candidate_sets, probe_sets):
        logger.info("sensitivity: %s", name)
        rows.append((name, gather(probe(), prompts)))
    return rows


def _settings(
    stages: LocalStages,
    settings: ProbingConfig,
    candidate_sets: Sequence[CandidateSet],
    probe_sets: Sequence[ProbeSet],
) -> Iterator[tuple[str, Callable[[], list[ProbeSet]]]]:
    """Yield one changed setting at a time, and the call that probes under it."""
    again = partial(stages.probe_again, candidate_sets, probe_sets)
    yield "exact transport", partial(again, solver="exact")
    for epsilon in settings.epsilons:
        yield f"epsilon {epsilon:g}", partial(again, solver="scaling", epsilon=epsilon)
    for window in settings.windows:
        yield f"K {window}", partial(again, window=window)
    yield "teacher's embeddings", partial(again, embedding="teacher")
    yield "student's embeddings", partial(again, embedding="student")
    for side in ("teacher", "student"):
        name = f"{side}'s embeddings, centred"
        yield name, partial(again, embedding=side, centred=True)
    for temperature in settings.temperatures:
        # At the run's own temperature the row would repeat the first one.
        if temperature != stages.config.probe.teacher_temperature:
            yield (
                f"teacher decodes at temperature {temperature:g}",
                partial(stages.probe, candidate_sets, temperature=temperature),
            )


def _check_windows(settings: ProbingConfig, longest: int) -> None:
    """Raise UserError for a window of more tokens than are decoded."""
    for window in settings.windows:
        if window > longest:
            raise UserError(
                f"probing.windows={window} exceeds probe.window={longest}: only so many"
                " tokens are decoded; lower it or raise probe.window"
            )


__all__ = ["run"]
