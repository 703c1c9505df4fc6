"""Note that a start of the job has ended by itself: only such starts count against a run that makes no progress."""

import os

from launcher import slurm
from launcher.record import Launch


def note(launch: Launch, job: str, restart: int, reason: str) -> None:
    """Note that a start has failed, unless it has lost a node, which is no fault of the run's. Raises OSError."""
    if nodes := _lost_nodes(launch, job, restart):
        launch.say(f"{', '.join(nodes)} was lost, so that this start does not count as failed")
    else:
        launch.add_failure(job=job, restart=restart, reason=" ".join(reason.split()))


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
