"""Read a run from its directory, and judge it: one that goes on, has ended, was broken off, or is of an old version."""

from dataclasses import dataclass
from pathlib import Path

from moco_dist.config import Config
from moco_dist.health.monitor import Diagnosis, diagnose
from moco_dist.run import directory, lease, paths, provenance, status
from moco_dist.run.rows import rows_so_far


@dataclass(frozen=True)
class Reading:
    """A reading is what a run directory tells of its run."""

    folder: Path
    config: Config | None
    """The config of the run; None where the run ended before it wrote one."""
    status: status.Status
    writer: str
    """The process that writes to the directory; empty where there is none."""
    diagnosis: Diagnosis | None
    """The diagnosis of the rows; None where there is no config to judge them by."""


def read(folder: Path) -> Reading:
    """Read a run directory, or the one that a resolved config lies in, and judge its run.

    Raises:
        UserError: there is no such directory, it is none of a run, or its files cannot be read.
    """
    folder = directory.existing(folder)
    files, state, writer = paths.RunPaths(folder), status.read(folder), lease.held_by(folder)
    if not files.config.exists():
        return Reading(folder, None, state, writer, None)
    config = directory.load_config(files.config)
    rows, starts = rows_so_far(files.metrics), provenance.read(folder)
    diagnosis = diagnose(rows, config.model_dump(mode="json"), status=state, starts=starts)
    return Reading(folder, config, state, writer, diagnosis)
