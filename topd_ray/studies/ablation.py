"""Every variant from the same warm starts, on held-out problems, seed by seed."""

import logging
from collections.abc import Sequence
from pathlib import Path

from topd_ray.config import load_config
from topd_ray.errors import UserError
from topd_ray.reports.ablation_results import AblationPlan, Comparison, RunResult
from topd_ray.reports.ablation_tables import describe
from topd_ray.reports.provenance import make_provenance
from topd_ray.reports.report import Report, write_report
from topd_ray.studies.ablation_config import AblationConfig
from topd_ray.studies.config import StudyConfig
from topd_ray.studies.planned_runs import PlannedRun, carry_out, plan_run
from topd_ray.studies.sampled_problems import Sampling

logger = logging.getLogger(__name__)


def run(study: StudyConfig) -> None:
    """Do the runs that are missing, then write the report.

    Raises UserError without an `ablation` section, TopdError where a run failed.
    """
    ablation = study.ablation
    if ablation is None:
        raise UserError(
            "the study file has no `ablation` section; configs/studies has an example"
        )
    planned = plan_runs(study, ablation)
    carry_out(planned, processes=ablation.processes, report=logger.info)
    provenance = make_provenance(
        study.load_run(),
        _section(ablation),
        study_seed=study.seed,
        # as if one run had followed the other
        wall_s=sum(planned_run.summary["wall_s"] for planned_run in planned),
    )
    report = make_report(planned, ablation, seed=study.seed)
    logger.info("written: %s", write_report(report, study.folder, provenance))


def plan_runs(study: StudyConfig, ablation: AblationConfig) -> list[PlannedRun]:
    """Return all runs of all variants.

    Seeds are the outer loop, so that an interrupted ablation has the same seeds of
    every variant.
    """
    planned = []
    sampling = (
        None
        if ablation.sampled_problems is None
        else Sampling(num_problems=ablation.sampled_problems, samples=ablation.samples)
    )
    # A seed has its warm start, so that variants are compared from the same weights.
    for seed, student in zip(ablation.seeds, ablation.students, strict=True):
        for name, variant in ablation.variants.items():
            config = load_config(
                Path(variant.config or study.run),
                [
                    *study.overrides,
                    *ablation.overrides,
                    *variant.overrides,
                    f"run.seed={seed}",
                    f"learner.model={student}",
                ],
            )
            root = study.folder / "runs"
            planned.append(plan_run(name, seed, config, root, sampling))
    return planned


def make_report(
    planned: Sequence[PlannedRun], ablation: AblationConfig, *, seed: int
) -> Report:
    """Return the report of finished runs."""
    results: dict[str, list[RunResult]] = {}
    for planned_run in planned:
        results.setdefault(planned_run.variant, []).append(planned_run.result())
    plan = AblationPlan(
        title=ablation.title,
        baseline=ablation.baseline,
        study_seed=seed,
        paper=ablation.reference,
        comparisons=[
            Comparison(**comparison.model_dump()) for comparison in ablation.comparisons
        ],
        fresh=ablation.fresh,
    )
    return describe(results, plan)


def _section(ablation: AblationConfig) -> dict[str, object]:
    """Return the study file's section, with configs by their names.

    Their folders differ from machine to machine and would change the config hash.
    """
    section = ablation.model_dump(mode="json")
    for variant in section["variants"].values():
        variant["config"] = variant["config"] and Path(variant["config"]).name
    return section


__all__ = ["make_report", "plan_runs", "run"]
