"""Decide how a run stands, from SLURM's state of its job and from what its run directory shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher import slurm
from launcher.record import Launch, Submission
from moco_dist.run.lease import held_by, process_start

Live = Literal["pending", "running", "requeued"]
"""requeued: waits for another start."""
Ended = Literal["done", "stopped", "cancelled", "user_error", "diverged", "crashed", "time limit", "lost"]
"""lost: runs by its status, but nobody runs it."""
State = Live | Ended | Literal["unknown", "unreadable"]
"""unknown: SLURM does not answer."""
Verdict = tuple[State, str]
"""How a run stands, and why in one line, which may be empty."""

FOR_GOOD = ("done", "user_error", "diverged")
"""Ends after which nothing starts a run again by itself."""
_CAUSES = {
    "OUT_OF_MEMORY": "a node's memory was full; ask for more by memory_gib",
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "a node did not boot",
}


@dataclass(frozen=True)
class Evidence:
    """What a run directory shows about its run."""

    controller: bool = False
    """Whether the process of a local job lives on this host."""
    writer: str = ""
    """Who writes to the directory; empty for nobody."""
    state: str | None = None
    step: int = 0
    """The step in status.json: that of the last save, or of the end."""
    reason: str = ""
    starts: int = 0
    """Number of starts so far, of all its jobs."""
    nodes: tuple[str, ...] = ()
    """Nodes of the last start."""
    began: bool = False
    """Whether the last job has started at all."""
    fresh: bool = False
    """Whether the last start wrote the status, not one before it."""

    @property
    def end(self) -> Verdict | None:
        """How the run has ended, by its status; None where that says that it has not, or is older than the job."""
        if self.state == "done" or (self.fresh and self.state in ("stopped", "user_error", "diverged", "crashed")):
            return self.state, self.reason  # type: ignore[return-value]
        return None

    @property
    def settled(self) -> bool:
        """Whether the run has ended for good; SLURM can only add that a job of it is live."""
        return self.end is not None and self.end[0] in FOR_GOOD

    @property
    def trouble(self) -> str:
        """Why a run that goes on is being stopped, or started again after a crash; empty if it is not."""
        return self.reason if self.fresh and self.state not in (None, "running", "done") else ""


UNREAD = Evidence()


def read(launch: Launch, submission: Submission) -> Evidence:
    """Read what a run directory shows.

    The processes are looked at ahead of the status: one that ends in between has left its status by then.

    Raises:
        OSError: the directory cannot be read.
        ValueError, TypeError, ArithmeticError: a file in it is damaged.
    """
    job = submission.job
    controller = job.isdecimal() and process_start(int(job)) == submission.started != ""
    writer = held_by(launch.run_dir)
    starts = launch.starts()
    status = launch.status()
    began = any(str(start.get("job")) == job for start in starts)
    fresh = began and _changed(launch.paths.status) >= _changed(launch.starts_file)
    reason = " ".join(status.reason.split())
    last = starts[-1].get("nodes") if starts else None
    nodes = tuple(map(str, last)) if isinstance(last, list) else ()
    return Evidence(controller, writer, status.state, status.step, reason, len(starts), nodes, began, fresh)


def of_local(job: str, evidence: Evidence) -> Verdict:
    """Judge a run without SLURM, by its controller's process, or by its lease if that is on another host."""
    if evidence.controller or evidence.writer:
        return "running", evidence.trouble
    return evidence.end or ("lost", f"process {job} is gone")


def of_job(job: slurm.Job, evidence: Evidence) -> Verdict:
    """Judge a run whose job SLURM knows."""
    if job.waits:
        return "requeued" if evidence.began else "pending", job.reason.removeprefix("None")
    if job.live:
        return "running", evidence.trouble or "is ending" * (job.state == "COMPLETING")
    if job.reason == slurm.NEVER:
        return "cancelled", "what it waited for has failed"
    return _ended(job.state, evidence)


def of_unknown_job(job: str, evidence: Evidence, slurm_error: str) -> Verdict:
    """Judge a run whose job SLURM does not know, or about which it does not answer, as `slurm_error` says.

    Without SLURM's answer only an end for good is sure; all else is how the run stood when it wrote its status.
    """
    if evidence.writer:
        why = "SLURM does not answer" if slurm_error else f"job {job} is not known to SLURM any more"
        return "running", f"{why}; {evidence.writer} writes to it"
    if evidence.end:
        return evidence.end
    if slurm_error and evidence.fresh and evidence.state == "running":
        return "running", ""
    if slurm_error:
        was = f"{evidence.state} at step {evidence.step}" if evidence.state else "not begun"
        return "unknown", f"the run directory says: {was}"
    never = "" if evidence.began else "; it never started"
    return "lost", f"job {job} is not known to SLURM any more{never}"


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
            return "time limit", reason or "it came before the run had saved"
        case "PREEMPTED":
            return "stopped", reason or "preempted, and not requeued"
        case _ if end and end[0] in ("stopped", "crashed"):
            return end
        case "COMPLETED":
            return "crashed", "its job ended, but the run had not"
    cause = _CAUSES.get(slurm_state, f"its job failed, SLURM says {slurm_state}")
    return "crashed", cause if evidence.fresh else f"{cause}; it had not begun to train"


def _changed(file: Path) -> int:
    """Return when a file was written, in nanoseconds by the clock of its disk; 0 if there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
