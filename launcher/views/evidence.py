"""Read what a run directory shows about its run: who writes to it, its status, its starts, and what is saved."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.record import Launch, Submission
from moco_dist.run.lease import held_by, process_start

End = Literal["done", "stopped", "user_error", "diverged", "crashed"]
"""The ends of a run, by its own status."""
FOR_GOOD = ("done", "user_error", "diverged")
"""Ends after which nothing starts a run again by itself."""


@dataclass(frozen=True)
class Evidence:
    """Evidence is what a run directory shows about its run."""

    controller: bool = False
    """True where the process of a local job lives on this host."""
    writer: str = ""
    """Who writes to the directory; empty for nobody."""
    state: str | None = None
    step: int = 0
    """The step in status.json: that of the last save, whether it succeeded or not, or of the end."""
    reason: str = ""
    saved: int = 0
    """The step of the last checkpoint; 0 for none."""
    starts: int = 0
    """Number of starts so far, of all its jobs."""
    nodes: tuple[str, ...] = ()
    """Nodes of the last start."""
    began: bool = False
    """True where the last job has started at all."""
    began_at: float | None = None
    """When the last start began, in seconds since the epoch."""
    fresh: bool = False
    """True where the last start wrote the status, not one before it."""
    trained: bool = False
    """True where the last start has done a step that was not done before."""
    failure: str = ""
    """Why the last start ended by itself, as the job has noted; empty where it has not."""
    changed_at: float = 0.0
    """The last sign of life: when the status, the rows or the record were written, in seconds since the epoch."""

    @property
    def end(self) -> tuple[End, str] | None:
        """Return how the run has ended, by its status; None where it has not, or the status is older than the job."""
        if self.state == "done" or (self.fresh and self.state in ("stopped", "user_error", "diverged", "crashed")):
            return self.state, self.reason  # type: ignore[return-value]
        return None

    @property
    def settled(self) -> bool:
        """Return whether the run has ended for good; SLURM can only add that a job of it is live."""
        return self.end is not None and self.end[0] in FOR_GOOD

    @property
    def trouble(self) -> str:
        """Return why a run that goes on is being stopped, or started again after a crash; empty if it is not."""
        return self.reason if self.fresh and self.state not in (None, "running", "done") else ""


UNREAD = Evidence()


def read(launch: Launch, submission: Submission, last_step: int) -> Evidence:
    """Read what a run directory shows.

    The processes are looked at ahead of the status: one that ends in between has left its status by then.

    Args:
        launch: the run's record.
        submission: the last one.
        last_step: step of the last training row.

    Raises:
        OSError: the directory cannot be read.
        ValueError, TypeError, ArithmeticError: a file in it is damaged.
    """
    job = submission.job
    controller = job.isdecimal() and process_start(int(job)) == submission.started != ""
    writer = held_by(launch.run_dir)
    starts = launch.starts()
    status = launch.status()
    written = {file: _changed(file) for file in (launch.paths.status, launch.paths.metrics, launch.starts_file)}
    fresh = {file: bool(starts) and when >= written[launch.starts_file] for file, when in written.items()}
    began = any(str(start.get("job")) == job for start in starts)
    last = starts[-1] if starts else {}
    steps = [(fresh[launch.paths.status], status.step), (fresh[launch.paths.metrics], last_step)]
    nodes, began_at = last.get("nodes"), last.get("time")
    return Evidence(
        controller,
        writer,
        status.state,
        status.step,
        " ".join(status.reason.split()),
        saved=launch.checkpoint_step(),
        starts=len(starts),
        nodes=tuple(map(str, nodes)) if isinstance(nodes, list) else (),
        began=began,
        began_at=float(began_at) if isinstance(began_at, int | float) else None,
        fresh=began and fresh[launch.paths.status],
        trained=began and any(is_fresh and step > last["step"] for is_fresh, step in steps),
        failure=_failure(launch, last),
        changed_at=max(*written.values(), _changed(launch.job_file)) / 1e9,
    )


def _failure(launch: Launch, start: dict[str, object]) -> str:
    """Return why a start has ended by itself; empty where nobody has noted that."""
    failures = launch.failures() if start else []
    if failures and (failures[-1]["job"], failures[-1].get("restart")) == (start["job"], start.get("restart")):
        return " ".join(str(failures[-1].get("reason", "")).split())
    return ""


def _changed(file: Path) -> int:
    """Return when a file was written, in nanoseconds by the clock of its disk; 0 if there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
