"""Read a run from its directory, and judge it: one that goes on, has ended, was broken off, or is of an old version."""

from dataclasses import dataclass
from pathlib import Path

from moco_dist.config import Config
from moco_dist.errors import UserError
from moco_dist.health.monitor import Diagnosis, diagnose
from moco_dist.run import directory, lease, paths, status
from moco_dist.run.rows import read_rows


@dataclass(frozen=True)
class Reading:
    """A reading is what a run directory tells of its run."""

    folder: Path
    config: Config | None
    """It is None where the run ended before it wrote one."""
    status: status.Status
    writer: str
    """The process that writes to the directory; empty where there is none."""
    diagnosis: Diagnosis | None
    """It is None where there is no config to judge the rows by."""


def read(folder: Path) -> Reading:
    """Read a run directory, or the one that a resolved config lies in, and judge its run.

    Raises:
        UserError: there is no such directory, it is none of a run, or its files cannot be read.
    """
    folder = paths.run_of(folder) or folder
    if not folder.is_dir():
        rule = "is no directory" if folder.exists() else "no such directory"
        raise UserError.of("RUN", folder, rule, "give the directory of a run")
    files, state = paths.RunPaths(folder), status.read(folder)
    if not files.config.exists():
        if state.state is None:
            raise UserError.of("RUN", folder, f"holds no {files.config.name}", "give the directory of a run")
        return Reading(folder, None, state, lease.held_by(folder), None)
    if not files.config.is_file():
        raise UserError.of("RUN", files.config, "is not a regular file", "remove it")
    config = directory.load_config(files.config)
    tree = config.model_dump(mode="json")
    try:
        rows = read_rows(files.metrics) if files.metrics.exists() else iter(())
        diagnosis = diagnose(rows, tree, status=state)
    except OSError as error:
        raise UserError.of("RUN", files.metrics, error.strerror or str(error), "mend it") from None
    return Reading(folder, config, state, lease.held_by(folder), diagnosis)
