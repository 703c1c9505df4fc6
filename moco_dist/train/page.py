"""Leave the page that shows the run, when it ends."""

import shlex
import threading
from collections.abc import Callable
from pathlib import Path

from moco_dist.errors import reason
from moco_dist.run.paths import RunPaths

PATIENCE_SECONDS = 2.0
"""The end of a run waits this long for its page."""


def leave(folder: Path, warn: Callable[[str], None]) -> bool:
    """Write the page of a run into its directory.

    What goes wrong is a warning. A page that takes long, as that of a run with very many rows, is given up: a thread
    that goes on does not keep the process alive.

    Args:
        folder: the run directory.
        warn: tells a warning.

    Returns:
        Whether the page is there.
    """
    file, faults = RunPaths(folder).report, list[str]()

    def write() -> None:
        try:
            from moco_dist.report import page, record

            page.write([record.read(folder)], file)
        except BaseException as error:  # anything: the page is beside training
            faults.append(reason(error))

    thread = threading.Thread(target=write, name="report", daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if thread.is_alive():
        faults.append(f"it takes longer than {PATIENCE_SECONDS:g} s")
    if faults:
        warn(f"{file}: not written ({faults[0]}); python -m moco_dist.report {shlex.quote(str(folder))} writes it")
    return not faults
