"""Steps whose update was skipped: kept for `topd replay`, until too many follow."""

import asyncio
import shutil
from pathlib import Path

from topd_ray.actors.protocols import LearnerGroup
from topd_ray.config import Config
from topd_ray.driver.health import suspects
from topd_ray.driver.loop import FinishedStep
from topd_ray.errors import BadStepsError
from topd_ray.records.bad_step import STUDENT, BadStep, write_step
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.run_log import RunLog

_KEPT_DUMPS = 3
"""A dump holds a whole student; the newest few are what a person looks at."""


class BadSteps:
    """Watches the finished steps of a session."""

    def __init__(
        self, config: Config, folder: RunFolder, learners: LearnerGroup, log: RunLog
    ) -> None:
        self._config = config
        self._folder = folder
        self._learners = learners
        self._log = log
        self._in_a_row = 0

    async def watch(self, finished: FinishedStep) -> None:
        """Keep a skipped step. Raises BadStepsError after too many in a row."""
        report = finished.report
        if not report.skipped:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        reasons = finished.receipts.complaints or ["gradient is not finite"]
        bad = BadStep(
            step=report.step,
            complaints=reasons,
            suspects=suspects(finished.receipts),
            threshold=finished.step.threshold,
        )
        dump = await self._dump(bad, finished)
        prompt_ids = [prompt.prompt_id for prompt in finished.prompts]
        self._log.step_skipped(bad, prompt_ids, dump)
        if self._in_a_row >= self._config.health.max_bad_steps:
            raise BadStepsError(
                f"step {report.step}: {'; '.join(reasons)}; {self._in_a_row} bad steps"
                f" in a row (health.max_bad_steps); rollouts {bad.suspects[:5]} of"
                f" prompts {prompt_ids[:5]}; `topd replay {dump}` does the step again,"
                " rollout by rollout. Lower learner.lr, look at these prompts, or move"
                " the limit"
            )

    async def _dump(self, bad: BadStep, finished: FinishedStep) -> Path:
        """Write the rollouts and the student of a step; remove old dumps."""
        folder = self._folder.dumps / f"step_{bad.step}"
        chunks = [c.rollouts for c in finished.step.chunks() if c.rollout_ids]
        await self._learners.dump(folder, chunks)
        # the update was skipped: these are the weights that the step started from
        await self._learners.export(folder / STUDENT)
        await asyncio.to_thread(write_step, folder, bad)
        dumps = self._folder.dumps.glob("step_*")
        by_age = sorted(dumps, key=lambda path: path.stat().st_mtime)
        for old in by_age[:-_KEPT_DUMPS]:
            shutil.rmtree(old)
        return folder
