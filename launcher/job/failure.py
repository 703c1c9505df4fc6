"""Note that a start of the job has failed: only such starts count against a run that makes no progress.

A start has failed that ended by itself, or by a time limit that left it no time to get any further.
"""

import os
import time

from launcher import slurm
from launcher.cluster import Profile
from launcher.record import BEFORE_FIRST_STEP, BEFORE_SAVED, Launch

_EARLY_SECONDS = 70.0
"""SLURM may tell a job up to a minute early that its time limit comes."""


def note(launch: Launch, job: str, restart: int, reason: str) -> None:
    """Note that a start has failed, unless it has lost a node, which is no fault of the run's. Raises OSError."""
    if nodes := _lost_nodes(launch, job, restart):
        launch.say(f"{', '.join(nodes)} was lost, so that this start does not count as failed")
    else:
        launch.add_failure(job=job, restart=restart, reason=" ".join(reason.split()))


def is_time_limit(profile: Profile, began: float) -> bool:
    """Return whether a request to save, which comes now, is the one ahead of the time limit.

    Args:
        profile: what the job has asked for.
        began: when this start began, in seconds since the epoch; it counts where SLURM does not tell the end.
    """
    end = float(os.environ.get("SLURM_JOB_END_TIME") or began + 60 * profile.time_minutes)
    return end - time.time() <= profile.signal_seconds + _EARLY_SECONDS


def note_time_limit(launch: Launch, job: str, restart: int) -> None:
    """Note that the time limit has ended a start, if that has brought the run no further. Raises OSError."""
    begun = [row["step"] for row in launch.starts() if (row["job"], row.get("restart")) == (job, restart)]
    saved = launch.checkpoint_step()
    if saved > (begun[-1] if begun else saved):
        return
    trained = bool(begun) and launch.status().step > begun[-1]  # it was to save, and could not
    launch.add_failure(job=job, restart=restart, reason=BEFORE_SAVED if trained else BEFORE_FIRST_STEP)


def _lost_nodes(launch: Launch, job: str, restart: int) -> list[str]:
    """List the nodes that the start has lost; none where SLURM does not tell."""
    began = [row for row in launch.starts() if (row["job"], row.get("restart")) == (job, restart)]
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not began or not nodes:
        return []
    try:
        return slurm.lost_nodes(nodes, float(began[-1].get("time", 0)))
    except (slurm.Unavailable, slurm.Refused):
        return []
