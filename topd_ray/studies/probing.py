"""Section 2.1: does a high token loss mean that the two models part ways?

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
from topd_ray.reports.probing_tables import analyse
from topd_ray.reports.probing_windows import Windows, gather
from topd_ray.reports.provenance import make_provenance
from topd_ray.reports.report import Table, write_report
from topd_ray.studies.config import ProbingConfig, StudyConfig
from topd_ray.studies.local_stages import Lab, token_id
from topd_ray.studies.target_masses import target_rows, targets_table

logger = logging.getLogger(__name__)


def run(study: StudyConfig) -> None:
    """Probe, compute, and write the report into the study's folder. Raises
    UserError.
    """
    start = time.perf_counter()
    config, settings = study.load_run(), study.probing
    _check_windows(settings, config.probe.window)
    lab = Lab(config)
    try:
        surface = {token_id(lab, word) for word in settings.surface_tokens}
        rollouts = lab.roll_out(lab.prompts(settings.num_prompts))
        candidates = lab.candidates(lab.score(rollouts), controls=True)
        prompts = {one.rollout_id: one.prompt_id for one in rollouts}
        logger.info(
            "probing %d windows", sum(len(one.positions_W) for one in candidates)
        )
        probes = lab.probe(candidates)
        windows = gather(probes, prompts)
        if not windows.of(HIGH).any():
            raise UserError(
                f"no candidate in {len(candidates)} rollouts: raise candidates.fraction"
                " or probing.num_prompts, or lower"
                f" candidates.min_window={config.candidates.min_window}"
            )
        sensitivity = _sensitivity(lab, settings, candidates, probes, prompts)
        report = analyse(
            windows,
            sensitivity,
            settings,
            config,
            study_seed=study.seed,
            surface=surface,
        )
        if config.probe.student == "rollout":
            report = replace(
                report,
                tables=[
                    *report.tables,
                    _targets(lab, rollouts, probes, seed=study.seed),
                ],
            )
    finally:
        lab.close()
    section = settings.model_dump(mode="json")
    wall_s = time.perf_counter() - start
    provenance = make_provenance(config, section, study_seed=study.seed, wall_s=wall_s)
    logger.info("written: %s", write_report(report, study.folder, provenance))


def _targets(
    lab: Lab, rollouts: Sequence[Rollout], probes: Sequence[ProbeSet], *, seed: int
) -> Table:
    """Soft targets of the windows that lie above the run's own quantile."""
    high = np.concatenate([one.d_ot_W[one.groups_W == HIGH] for one in probes])
    threshold = float(np.nanquantile(high, lab.config.windows.divergence.quantile))
    readings = {one.rollout.rollout_id: one for one in lab.read(rollouts, top=1)}
    return targets_table(target_rows(probes, readings, threshold=threshold), seed=seed)


def _sensitivity(
    lab: Lab,
    settings: ProbingConfig,
    candidates: Sequence[CandidateSet],
    probes: Sequence[ProbeSet],
    prompts: dict[str, str],
) -> list[tuple[str, Windows]]:
    """Every setting's name and windows, the run's own first."""
    rows = [("as the run", gather(probes, prompts))]
    for name, probe in _settings(lab, settings, candidates, probes):
        logger.info("sensitivity: %s", name)
        rows.append((name, gather(probe(), prompts)))
    return rows


def _settings(
    lab: Lab,
    settings: ProbingConfig,
    candidates: Sequence[CandidateSet],
    probes: Sequence[ProbeSet],
) -> Iterator[tuple[str, Callable[[], list[ProbeSet]]]]:
    """One setting changed at a time, and the call that probes under it."""
    again = partial(lab.probe_again, candidates, probes)
    yield "exact transport", partial(again, solver="exact")
    for epsilon in settings.epsilons:
        yield f"epsilon {epsilon:g}", partial(again, solver="scaling", epsilon=epsilon)
    for window in settings.windows:
        yield f"K {window}", partial(again, window=window)
    yield "teacher's embeddings", partial(again, embedding="teacher")
    yield "student's embeddings", partial(again, embedding="student")
    for temperature in settings.temperatures:
        if (
            temperature != lab.config.probe.teacher_temperature
        ):  # else the run's own, once more
            yield (
                f"teacher decodes at temperature {temperature:g}",
                partial(lab.probe, candidates, temperature=temperature),
            )


def _check_windows(settings: ProbingConfig, longest: int) -> None:
    for window in settings.windows:
        if window > longest:
            raise UserError(
                f"probing.windows={window} exceeds probe.window={longest}: only so many"
                " tokens are decoded; lower it or raise probe.window"
            )


__all__ = ["run"]
