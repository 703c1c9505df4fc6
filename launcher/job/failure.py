"""Note that a start of the job has failed: only such starts count against a run that makes no progress.

A start has failed that ended by itself, or by a time limit that left it no time to get any further.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launcher import nodes, slurm
from launcher.cluster import Profile
from launcher.record import BEFORE_FIRST_STEP, BEFORE_SAVED, Launch

_EARLY_SECONDS = 70.0
"""SLURM may tell a job up to a minute early that its time limit comes."""

_VICTIMS = r"\b(PeerLost|Hang|SIGTERM|DistStoreError|DistNetworkError)\b|the other ranks did not start"
"""The errors of a rank that has only waited for another one."""


def note(launch: Launch, job: str, restart: int, reason: str, bad_nodes: Sequence[str] = ()) -> None:
    """Note that a start has failed, unless it has lost a node, which is no fault of the run's. Raises OSError.

    Args:
        launch: the run's record.
        job: its job.
        restart: number of starts of the job before this one.
        reason: why it failed.
        bad_nodes: nodes whose fault it is, where that is known.
    """
    reason = " ".join(reason.split())
    lost = [] if bad_nodes else lost_nodes(launch, job, restart, os.environ.get("SLURM_JOB_NODELIST"))
    at_fault = bad_nodes or lost or _blamed(launch, job, restart)
    launch.add_end(job=job, restart=restart, reason=reason, bad_nodes=at_fault)
    if lost:
        launch.say(f"{', '.join(lost)} was lost, so that this start does not count as failed")
    else:
        launch.add_failure(job=job, restart=restart, reason=reason)


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
    start, saved = launch.start(job, restart), launch.checkpoint_step()
    if start and saved > start["step"]:
        return
    trained = start is not None and launch.status().step > start["step"]  # it was to save, and could not
    launch.add_failure(job=job, restart=restart, reason=BEFORE_SAVED if trained else BEFORE_FIRST_STEP)


def note_unfinished(launch: Launch, start: Mapping[str, Any]) -> None:
    """Note that SLURM has ended a start, if nobody has noted its end: all its processes were killed, or a node lost."""
    job, restart = str(start["job"]), int(start.get("restart", 0))
    if not any((end["job"], end.get("restart")) == (job, restart) and "reason" in end for end in launch.ends()):
        lost = lost_nodes(launch, job, restart, ",".join(map(str, start.get("nodes", ()))))
        launch.add_end(job=job, restart=restart, reason="SLURM has ended it", bad_nodes=lost, seen=False)


def lost_nodes(launch: Launch, job: str, restart: int, hosts: str | None) -> list[str]:
    """List those of a start's nodes that it has lost; none where SLURM does not tell."""
    start = launch.start(job, restart)
    if not start or not hosts:
        return []
    try:
        return nodes.lost(hosts, float(start.get("time", 0)))
    except (slurm.Unavailable, slurm.Refused):
        return []


def _blamed(launch: Launch, job: str, restart: int) -> list[str]:
    """List the one node whose rank has failed by itself; none where several have, or nobody knows."""
    rows = [row for row in launch.failed_ranks(job, restart) if not re.search(_VICTIMS, str(row.get("error")))]
    first = re.match(r"rank (\d+): (?!PeerLost|Hang)", launch.status().reason)
    rows = [row for row in rows if first and row.get("rank") == int(first[1])] or rows
    names = {str(row.get("node")) for row in rows}
    return sorted(names) if len(names) == 1 else []
