"""The page that a finished run leaves in its folder."""

import logging

from topd_ray.errors import first_line
from topd_ray.page.report import write_report
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.run_log import RunLog

logger = logging.getLogger(__name__)


def leave_report(folder: RunFolder, log: RunLog) -> None:
    """Write the page of a run and name it; say why where it cannot be written."""
    try:
        report = write_report(folder.path)
    except Exception as error:
        # The run is finished and its summary written: no mistake in the page may make
        # it a failed one.
        logger.warning("no report was written", exc_info=True)
        log.event("report_failed", reason=first_line(error))
        log.say(
            f"no report: {first_line(error)}; `topd report {folder.path}` writes it"
        )
        return
    log.say(f"report {report}")


__all__ = ["leave_report"]
