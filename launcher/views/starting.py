"""Tell what a run that SLURM has started waits for, until it trains."""

import re

from launcher import slurm_jobs
from launcher.record import Launch, Submission
from launcher.views.evidence import Evidence
from launcher.views.moments import of_text
from moco_dist import files

_CLOCKS_DIFFER_SECONDS = 5.0
_LOG_BYTES = 2**16


def waits_for(launch: Launch, submission: Submission, evidence: Evidence, job: slurm_jobs.Job | None) -> str:
    """Say what the start of a running run waits for before its first step; empty once it trains, or ends.

    Args:
        launch: the run's record.
        submission: the last one.
        evidence: what the run directory shows.
        job: the job at SLURM; None for a local one, and where SLURM does not tell.
    """
    if job and job.state == "CONFIGURING":
        return "its nodes to come up"
    if job and job.state != "RUNNING":
        return ""
    if not _has_begun(evidence, job):
        return "its tasks to begin on the nodes"
    if evidence.trained or (evidence.fresh and evidence.state != "running"):
        return ""
    if evidence.fresh:
        return "its first batch and step"
    begun = _ranks_begun(launch)
    ranks = len(evidence.nodes) * submission.profile.gpus_per_node or submission.ranks
    if begun >= ranks:
        return "its ranks to meet and to load the data"
    if begun:
        return f"its ranks to begin, {begun} of {ranks} have"
    without_data = _nodes_without_data(launch, evidence) if submission.stage else []
    if without_data:
        names = ", ".join(without_data[:3]) + ", ..." * (len(without_data) > 3)
        return f"the data to be unpacked on {names}"
    return "its nodes to meet and to start their ranks"


def _has_begun(evidence: Evidence, job: slurm_jobs.Job | None) -> bool:
    """Return whether the last start in the record is the one that SLURM runs now."""
    since = of_text(job.started) if job else None
    if not evidence.began or since is None or evidence.began_at is None:
        return evidence.began
    return evidence.began_at >= since - _CLOCKS_DIFFER_SECONDS


def _ranks_begun(launch: Launch) -> int:
    """Count the ranks that have written to their log since the last start began, by the clock of its disk."""
    try:
        since = launch.starts_file.stat().st_mtime_ns
        return sum(log.stat().st_mtime_ns >= since for log in launch.logs.glob("rank_*.log"))
    except OSError:
        return 0


def _nodes_without_data(launch: Launch, evidence: Evidence) -> list[str]:
    """List the nodes of the last start that have not said yet that they have the data of an archive."""
    try:
        log = files.read_end(launch.logs / "launcher.log", _LOG_BYTES)
        lines = log.decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    last = max((number for number, line in enumerate(lines) if re.search(r": job \S+, start \d+, ", line)), default=0)
    ready = {match[1] for line in lines[last:] if (match := re.search(r"^\S+ (\S+): has the data", line))}
    return [node for node in evidence.nodes if node not in ready]
