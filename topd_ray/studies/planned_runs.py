"""Many whole runs, a few at a time; a finished run is not repeated."""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topd_ray.config import Config, dump_config
from topd_ray.errors import TopdError, UserError
from topd_ray.models.headers import weight_files
from topd_ray.models.roles import resolve_student, resolve_teacher
from topd_ray.processes import process_pool
from topd_ray.records.run_folder import RunFolder, write_whole
from topd_ray.reports.ablation_results import RunResult
from topd_ray.studies.sampled_problems import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of one variant at one seed."""

    variant: str
    seed: int
    config: Config
    sampling: Sampling | None = None
    """Samples of the trained student; None: none are drawn."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        sampling = self.sampling
        return self.folder.summary.is_file() and (
            sampling is None or sampling.file(self.folder.path).is_file()
        )

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(Path(self.config.run.root).absolute() / self.config.run.name)

    @property
    def summary(self) -> dict[str, Any]:
        """The summary.json of the finished run."""
        text = self.folder.summary.read_text(encoding="utf-8")
        summary: dict[str, Any] = json.loads(text)
        return summary

    def result(self) -> RunResult:
        """Return what the finished run has left behind."""
        summary = self.summary
        curve = {0: summary["accuracy_before"]}
        for event in _read_lines(self.folder.events):
            if event["event"] == "evaluated":
                curve[event["step"]] = event["num_correct"] / event["num_problems"]
        # Last: the accuracy after training replaces an evaluation of the same step.
        curve[summary["steps"]] = summary["accuracy_after"]
        return RunResult(
            variant=self.variant,
            seed=self.seed,
            summary=summary,
            metrics=_read_lines(self.folder.metrics),
            curve=sorted(curve.items()),
            sampled=(
                None if self.sampling is None else self.sampling.read(self.folder.path)
            ),
        )


def plan_run(
    variant: str,
    seed: int,
    config: Config,
    root: Path,
    sampling: Sampling | None = None,
) -> PlannedRun:
    """Return a run whose folder lies below `root`.

    The folder's name holds the variant, the seed and a hash of everything that the
    result depends on.
    """
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", variant).strip("-.")
    name = f"{slug}-seed{seed}-{_fingerprint(config)}"
    run = config.run.model_copy(update={"root": str(root), "name": name})
    return PlannedRun(
        variant=variant,
        seed=seed,
        config=config.model_copy(update={"run": run}),
        sampling=sampling,
    )


def carry_out(
    planned: Sequence[PlannedRun], *, processes: int, report: Callable[[str], None]
) -> None:
    """Do the runs that are not finished, `processes` at a time with one thread each.

    An interrupted run goes on from its checkpoint. `report` takes a line of progress.
    When all other runs are through, raises TopdError naming those that failed and their
    logs.
    """
    missing = [planned_run for planned_run in planned if not planned_run.is_finished]
    num_finished = len(planned) - len(missing)
    report(f"{len(planned)} runs, {num_finished} of them finished before")
    try:
        with process_pool(processes) as pool:
            failed = _in_pool(pool, missing, report)
    except KeyboardInterrupt:
        report("stopped; finished runs are kept, and the same command does the rest")
        raise
    if failed:
        logs = ", ".join(str(_log(planned_run.folder)) for planned_run in failed)
        raise TopdError(f"{len(failed)} of {len(planned)} runs failed; see {logs}")


def _in_pool(
    pool: ProcessPoolExecutor,
    missing: Sequence[PlannedRun],
    report: Callable[[str], None],
) -> list[PlannedRun]:
    """Do the runs in the pool's processes; return those that failed."""
    pending = {
        pool.submit(
            _carry_out_one, _prepared(planned_run), planned_run.sampling
        ): planned_run
        for planned_run in missing
    }
    failed = []
    for number, future in enumerate(as_completed(pending), start=1):
        planned_run = pending[future]
        error = future.exception()
        name = f"{planned_run.variant}, seed {planned_run.seed}"
        outcome = _outcome(planned_run) if error is None else f"failed: {error}"
        report(f"{number} of {len(missing)}  {name}: {outcome}")
        if error is not None:
            failed.append(planned_run)
    return failed


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(
            f"{path.parent} has a summary, but no {path.name}: remove the folder, and"
            " the study does the run again"
        )
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _outcome(planned_run: PlannedRun) -> str:
    summary = planned_run.summary
    before = summary["accuracy_before"]
    after = summary["accuracy_after"]
    return f"{before:.1%} -> {after:.1%} in {summary['wall_s']:.0f} s"


def _prepared(planned_run: PlannedRun) -> Path:
    """Create the run's folder with its config in it, as `resume` expects it."""
    folder = planned_run.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    write_whole(folder.config, dump_config(planned_run.config))
    return folder.path


def _carry_out_one(path: Path, sampling: Sampling | None) -> None:
    """Do what is left of the run in the folder: the body of a worker process."""
    # Imported here: it loads torch and Ray, which the parent process needs not.
    from topd_ray.driver import session

    folder = RunFolder(path)
    with (
        _log(folder).open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        if not folder.summary.is_file():
            session.resume(path)
        if sampling is not None:
            sampling.measure(path)


def _log(folder: RunFolder) -> Path:
    return folder.path / "log.txt"


def _fingerprint(config: Config) -> str:
    """Return a hash of the config, the models and the data.

    Where the run folder lies and what is recorded do not count: a study that is moved,
    or shown to other trackers, is not computed again.
    """
    run = config.run.model_copy(update={"root": "runs", "name": "run"})
    plain = config.model_copy(update={"run": run}).model_dump(
        mode="json", exclude={"records"}
    )
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    files = [
        Path(config.prompts.path),
        Path(config.evaluation.path or config.prompts.path),
    ]
    files += weight_files(resolve_student(config))
    files += weight_files(resolve_teacher(config))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:10]


__all__ = ["PlannedRun", "carry_out", "plan_run"]
