"""Find in a run's files what goes wrong beside its state: checkpoints that are not saved, and a disk that is full."""

import re
from collections.abc import Iterator
from pathlib import Path

from launcher import job_ids
from launcher.record import Launch, Submission
from launcher.views.evidence import Evidence
from moco_dist import files

_TAIL_BYTES = 2**15
_MOST_LOGS = 8
_FULL = re.compile(rb"[^\n]*(?:No space left on device|Disk quota exceeded)[^\n]*")
_NOT_SAVED = re.compile(rb"checkpoint of step (\d+) not saved, training goes on: ([^\r\n]*)")
_START = re.compile(rb"(?m)^--- job |: job \S+, start \d+, from step ")
"""The first line of a start, in the log of a rank and in the output of the job."""


def of_checkpoints(launch: Launch, evidence: Evidence, failures: int) -> str:
    """Say that the last checkpoints of a run have not been saved, and why; empty where they have.

    Args:
        launch: the run's record.
        evidence: what the run directory shows.
        failures: how many checkpoints of the last start were not saved, by its last row.
    """
    if evidence.saved >= evidence.step or not evidence.fresh:
        return ""
    lines = _NOT_SAVED.findall(_of_last_start(launch.log(0)))
    causes = [cause for step, cause in lines if int(step) > evidence.saved]
    if not causes and (lines or not failures):  # the one that is missing is still being written
        return ""
    count = f" ({failures})" if failures else ""
    cause = f": {causes[-1].decode('utf-8', errors='replace')}" if causes else ""
    return f"checkpoints fail{count}{cause}"


def outputs(launch: Launch, submission: Submission) -> list[Path]:
    """List what the batch script of a run's job and its tasks have written; an array's lies in its sweep's folder."""
    number = job_ids.number(submission.job)
    place = Launch(Path(submission.sweep)) if submission.sweep and "_" in number else launch
    return sorted(file for file in place.submitit.glob(f"{number}_*log.*") if file.is_file())


def full_disk(launch: Launch, submission: Submission) -> str:
    """Return the line by which the last start, or its batch script, has met a full disk; empty where it has not."""
    for log in _latest([*launch.logs.glob("rank_*.log"), *outputs(launch, submission)]):
        if lines := _FULL.findall(_of_last_start(log)):
            return " ".join(lines[-1].decode("utf-8", errors="replace").split())[-300:]
    return ""


def _latest(logs: list[Path]) -> Iterator[Path]:
    """Yield those that were written last, the last one first."""
    written = [(log.stat().st_mtime_ns, log) for log in logs if log.is_file()]
    yield from (log for _, log in sorted(written, reverse=True)[:_MOST_LOGS])


def _of_last_start(log: Path) -> bytes:
    """Read the end of a log, as far as it is of the last start; empty where there is none."""
    try:
        text = files.read_end(log, _TAIL_BYTES)
    except OSError:
        return b""
    starts = [match.start() for match in _START.finditer(text)]
    return text[starts[-1] :] if starts else text
