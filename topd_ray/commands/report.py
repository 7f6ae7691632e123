"""`topd report`: one page of a run, as a file."""

from pathlib import Path

from topd_ray.errors import UserError
from topd_ray.page.report import write_report


def report(run: Path, *, against: Path | None) -> Path:
    """Write the page of a run into its folder and return its path.

    Raises UserError where there is no run folder, or nothing can be written there.
    """
    try:
        return write_report(run, against=against)
    except OSError as error:
        raise UserError(
            f"{run}: no report can be written there ({error.strerror}); make room or"
            " allow writing"
        ) from None
