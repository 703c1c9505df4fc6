"""How a run stands, by SLURM's word for its job and by what its run directory tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from launcher import slurm
from launcher.record import Launch, Submission
from moco_dist.run import status
from moco_dist.run.lease import held_by, process_start

State = Literal[
    "pending",
    "running",
    "requeued",
    "done",
    "stopped",
    "cancelled",
    "user_error",
    "diverged",
    "crashed",
    "time limit",
    "lost",
    "unknown",
    "unreadable",
]
"""requeued: waits after a start; lost: runs by its directory, but nobody runs it; unknown: SLURM does not answer."""

FOR_GOOD = ("done", "user_error", "diverged")
"""Ends after which nothing starts a run again by itself."""
_CAUSES = {
    "OUT_OF_MEMORY": "a node's memory was full; ask for more by memory_gib",
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "a node did not boot",
}


class Verdict(NamedTuple):
    """How a run stands. Neither live nor ended: nobody could tell."""

    state: State
    reason: str = ""
    live: bool = False
    ended: bool = False


@dataclass(frozen=True)
class Told:
    """What a run directory tells of its run."""

    controller: bool
    """Whether the process of a local job lives on this host."""
    writer: str
    """Who writes to the directory; empty for nobody."""
    state: str | None
    step: int
    reason: str
    starts: int
    began: bool
    """Whether the last job has started at all."""
    fresh: bool
    """Whether the status is of the last start, not of one before it."""

    @property
    def end(self) -> tuple[State, str] | None:
        """How the run has ended, by its status; None where that says that it has not, or is older than the job."""
        if self.state == "done" or (self.fresh and self.state in ("stopped", "user_error", "diverged", "crashed")):
            return self.state, self.reason  # type: ignore[return-value]
        return None

    @property
    def settled(self) -> bool:
        """Whether SLURM could add nothing, but that a job is live."""
        return self.end is not None and self.end[0] in FOR_GOOD

    @property
    def trouble(self) -> str:
        """What a run that goes on has met in this start: it is being stopped, or started again after a crash."""
        return self.reason if self.fresh and self.state not in (None, "running", "done") else ""


def read(launch: Launch, sent: Submission) -> Told:
    """What a run directory tells. Who lives is asked first: who has ended since has left a status.

    Raises:
        OSError: it cannot be read.
        ValueError, TypeError, ArithmeticError: a file in it is damaged.
    """
    controller = sent.job.isdecimal() and process_start(int(sent.job)) == sent.started != ""
    writer = held_by(launch.run_dir)
    starts = launch.starts()
    state, step, reason = status.read(launch.run_dir)
    began = any(str(row.get("job")) == sent.job for row in starts)
    fresh = began and _changed(launch.run_dir / "status.json") >= _changed(launch.starts_file)
    return Told(controller, writer, state, step, " ".join(reason.split()), len(starts), began, fresh)


def of_local(job: str, told: Told) -> Verdict:
    """Of a run without SLURM: by its controller's process, or by its lease from another host."""
    if told.controller or told.writer:
        return Verdict("running", told.trouble, live=True)
    return Verdict(*(told.end or ("lost", f"process {job} is gone")), ended=True)


def of_job(job: slurm.Job, told: Told) -> Verdict:
    """Of a run whose job SLURM knows."""
    if job.waits:
        return Verdict("requeued" if told.began else "pending", job.reason.removeprefix("None"), live=True)
    if job.live:
        return Verdict("running", told.trouble or "is ending" * (job.state == "COMPLETING"), live=True)
    return Verdict(*_ended(job.state, told), ended=True)


def of_silence(job: str, told: Told, silence: str) -> Verdict:
    """Of a run of whose job SLURM does not tell: it has forgotten it, or it is silent, as `silence` says."""
    if told.writer:
        why = "SLURM does not answer" if silence else f"job {job} is not known to SLURM any more"
        return Verdict("running", f"{why}; {told.writer} writes to it", live=True)
    if told.end and (told.settled or not silence):
        return Verdict(*told.end, ended=True)
    if silence:
        was = f"{told.state} at step {told.step}" if told.state else "not begun"
        return Verdict("unknown", f"SLURM does not answer; the run directory says: {was}")
    never = "" if told.began else "; it never started"
    return Verdict("lost", f"job {job} is not known to SLURM any more{never}", ended=True)


def _ended(word: str, told: Told) -> tuple[State, str]:
    """State and reason of a run whose job has ended, by SLURM's word for it."""
    end = told.end
    if end and (end[0] in ("user_error", "diverged") or (end[0] == "done" and (told.began or word == "COMPLETED"))):
        return end
    said = told.reason if told.fresh and told.state != "running" else ""
    match word:
        case "CANCELLED":
            return "cancelled", said
        case "TIMEOUT":
            return "time limit", said or "it came before the run had saved"
        case "PREEMPTED":
            return "stopped", said or "preempted, and not requeued"
        case _ if end and end[0] in ("stopped", "crashed"):
            return end
        case "COMPLETED":
            return "crashed", "its job ended, but the run had not"
    how = _CAUSES.get(word, f"its job failed, SLURM says {word}")
    return "crashed", how if told.fresh else f"{how}; it had not begun to train"


def _changed(file: Path) -> int:
    """When a file was written, by the clock of its disk; 0 for none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
