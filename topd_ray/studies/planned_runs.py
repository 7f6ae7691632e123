"""Many whole runs, a few at a time; a run that is finished is never done again."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topd_ray.config import Config, dump_config
from topd_ray.errors import TopdError
from topd_ray.models.headers import weight_files
from topd_ray.models.roles import resolve_student, resolve_teacher
from topd_ray.records.run_folder import RunFolder, write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of one variant at one seed."""

    variant: str
    seed: int
    config: Config

    @property
    def folder(self) -> RunFolder:
        """Where the run lies."""
        return RunFolder(Path(self.config.run.root).absolute() / self.config.run.name)

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json of the finished run."""
        found: dict[str, Any] = json.loads(
            self.folder.summary.read_text(encoding="utf-8")
        )
        return found

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, accuracy) before, during and after training."""
        lines = self.folder.events.read_text(encoding="utf-8").splitlines()
        during = {
            event["step"]: event["num_correct"] / event["num_problems"]
            for event in map(json.loads, lines)
            if event["event"] == "evaluated"
        }
        summary = self.summary
        ends = {
            0: summary["accuracy_before"],
            summary["steps"]: summary["accuracy_after"],
        }
        return sorted((during | ends).items())


def named(variant: str, seed: int, config: Config, root: Path) -> PlannedRun:
    """A run whose folder below `root` is named by what it is and what its result
    depends on.
    """
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", variant).strip("-.")
    name = f"{slug}-seed{seed}-{_fingerprint(config)}"
    run = config.run.model_copy(update={"root": str(root), "name": name})
    return PlannedRun(
        variant=variant, seed=seed, config=config.model_copy(update={"run": run})
    )


def carry_out(
    planned: Sequence[PlannedRun], *, processes: int, say: Callable[[str], None]
) -> None:
    """Do what is not done yet, in order, `processes` at a time with one thread each.

    A run that was interrupted goes on from its checkpoint. When all others are through,
    raises TopdError naming the runs that failed and their logs.
    """
    missing = [one for one in planned if not one.folder.summary.is_file()]
    say(f"{len(planned)} runs, {len(planned) - len(missing)} of them finished before")
    # threads of two runs on the same cores get in each other's way; workers inherit
    # this
    os.environ["OMP_NUM_THREADS"] = "1"
    failed = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        pending = {pool.submit(_carry_out_one, _prepared(one)): one for one in missing}
        for number, done in enumerate(as_completed(pending), start=1):
            one = pending[done]
            error = done.exception()
            outcome = _outcome(one) if error is None else f"failed: {error}"
            say(
                f"{number} of {len(missing)}  {one.variant}, seed {one.seed}: {outcome}"
            )
            if error is not None:
                failed.append(one)
    if failed:
        logs = ", ".join(str(_log(one.folder)) for one in failed)
        raise TopdError(f"{len(failed)} of {len(planned)} runs failed; see {logs}")


def _outcome(one: PlannedRun) -> str:
    summary = one.summary
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    return f"{before:.1%} -> {after:.1%} in {summary['wall_s']:.0f} s"


def _prepared(one: PlannedRun) -> Path:
    """The run's folder with its config in it, as `resume` finds it."""
    one.folder.path.mkdir(parents=True, exist_ok=True)
    write_whole(one.folder.config, dump_config(one.config))
    return one.folder.path


def _carry_out_one(path: Path) -> None:
    """Body of a worker process."""
    from topd_ray.driver import session as run

    with (
        _log(RunFolder(path)).open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        run.resume(path)


def _log(folder: RunFolder) -> Path:
    return folder.path / "log.txt"


def _fingerprint(config: Config) -> str:
    """Changes with every config value but where the run lies, and with its models and
    data.
    """
    run = config.run.model_copy(update={"root": "runs", "name": "run"})
    digest = hashlib.sha256(
        dump_config(config.model_copy(update={"run": run})).encode()
    )
    files = [
        Path(config.prompts.path),
        Path(config.evaluation.path or config.prompts.path),
    ]
    files += weight_files(resolve_student(config))
    files += weight_files(resolve_teacher(config))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:10]
