"""What the four kinds of worker have in common: a log of their own in the run
folder.
"""

import faulthandler
import os
import sys
from pathlib import Path


class Worker:
    """Base class; its constructor comes first, so that a failure to load is in the log
    too.
    """

    def __init__(self, log: Path | None) -> None:
        """`log`: where stdout and stderr of this process go from here on; None leaves
        them be.
        """
        if log is None:
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for stream in (1, 2):  # what native code prints, too
            os.dup2(handle, stream)
        os.close(handle)
        faulthandler.enable()  # a crash leaves the stack of every thread
