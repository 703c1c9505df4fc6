"""Decide how a run stands, from SLURM's state of its job and from what its run directory shows."""

import re
from typing import Literal

from launcher import slurm_jobs
from launcher.record import BEFORE_FIRST_STEP, BEFORE_SAVED
from launcher.views.evidence import UNREAD, Evidence

Live = Literal["pending", "running", "requeued"]
"""requeued: waits for another start."""
Ended = Literal["done", "stopped", "cancelled", "user_error", "diverged", "crashed", "time limit", "lost"]
"""lost: runs by its status, but nobody runs it."""
State = Live | Ended | Literal["unknown", "unreadable"]
"""unknown: SLURM does not answer."""
Verdict = tuple[State, str]
"""The state of a run, and the reason in one line, which may be empty."""

_CAUSES = {
    "OUT_OF_MEMORY": "a node's memory was full; ask for more by memory_gib",
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "a node did not boot",
}

_PAUSES = {
    "COMPLETING": "is ending",
    "SUSPENDED": "SLURM has suspended it, and it cannot save until it is resumed",
    "STOPPED": "SLURM has stopped it for a while",
}
"""Why a job that has nodes does not train."""


def of_local(job: str, evidence: Evidence) -> Verdict:
    """Judge a run without SLURM, by its controller's process, or by its lease if that is on another host."""
    if evidence.controller or evidence.writer:
        return "running", evidence.trouble
    return evidence.end or ("lost", f"process {job} is gone")


def of_job(job: slurm_jobs.Job, evidence: Evidence) -> Verdict:
    """Judge a run whose job SLURM knows."""
    if job.waits:
        reason = "; ".join(filter(None, [_why_it_waits(job), evidence.failure]))
        return "requeued" if evidence.began else "pending", reason
    if job.live:
        return "running", evidence.trouble or _PAUSES.get(job.state, "")
    if job.reason == slurm_jobs.NEVER:
        return "cancelled", "what it waited for has failed"
    return _ended(job.state, evidence)


def without_record(job: slurm_jobs.Job) -> Verdict:
    """Judge a live job that no run directory has a record of."""
    state, reason = of_job(job, UNREAD)
    return state, "; ".join(filter(None, ["its run directory has no record of it", reason]))


def _why_it_waits(job: slurm_jobs.Job) -> str:
    """Return why a job waits, in SLURM's words, and for one that is held the command that releases it."""
    reason = job.reason.removeprefix("None")
    if job.state not in ("REQUEUE_HOLD", "SPECIAL_EXIT") and not re.search("held|JobHoldMax", reason, re.IGNORECASE):
        return reason
    who = "an administrator lets it go by" if "admin" in reason.lower() else "let it go by"
    return f"{reason or 'held'}; {who}: scontrol release {job.id}"


def of_unknown_job(job: str, evidence: Evidence, slurm_error: str, elsewhere: str = "") -> Verdict:
    """Judge a run whose job SLURM does not know, or about which it does not answer.

    Without SLURM's answer only an end for good is sure; all else is how the run stood when it wrote its status.

    Args:
        job: the job that the run was sent as.
        evidence: what the run directory shows.
        slurm_error: why SLURM does not answer; empty where it does.
        elsewhere: the directory that SLURM has this job for, where that is another one.
    """
    gone = f"job {job} is not known to SLURM any more"
    if elsewhere:
        gone = f"job {job} at SLURM is that of {elsewhere}: this directory was moved, or SLURM counts anew"
    if evidence.writer:
        why = "SLURM does not answer" if slurm_error else gone
        return "running", f"{why}; {evidence.writer} writes to it"
    if evidence.end:
        return evidence.end
    if slurm_error and evidence.fresh and evidence.state == "running":
        return "running", ""
    if slurm_error:
        was = f"{evidence.state} at step {evidence.step}" if evidence.state else "not begun"
        return "unknown", f"the run directory says: {was}"
    never = "" if evidence.began else "; it never started"
    return "lost", gone + never


def _ended(slurm_state: str, evidence: Evidence) -> Verdict:
    """Return state and reason of a run whose job has ended in this state of SLURM's."""
    end, done = evidence.end, evidence.began or slurm_state == "COMPLETED"
    if end and (end[0] in ("user_error", "diverged") or (end[0] == "done" and done)):
        return end
    reason = evidence.reason if evidence.fresh and evidence.state != "running" else ""
    match slurm_state:
        case "CANCELLED":
            return "cancelled", reason
        case "TIMEOUT":
            return "time limit", reason or (BEFORE_SAVED if evidence.trained else BEFORE_FIRST_STEP)
        case "PREEMPTED":
            return "stopped", reason or "preempted, and not requeued"
        case _ if end and end[0] in ("stopped", "crashed"):
            return end
        case "COMPLETED":
            return "crashed", "its job ended, but the run had not"
    cause = _CAUSES.get(slurm_state, f"its job failed, SLURM says {slurm_state}")
    return "crashed", cause if evidence.fresh else f"{cause}; it had not begun to train"
