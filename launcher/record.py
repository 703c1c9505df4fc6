"""Read and write the launcher's record of a run, the folder `launch/` in its run directory.

launch/
  job.json        the last submission: job id, profile, nodes
  config.yaml     the config as it was sent
  code/<digest>/  the code that the job runs, at every start of it
  starts.jsonl    a line for each start of a job: job, restart, step that it began from, time, nodes
  ends.jsonl      lines about the ends of starts: job, restart, time, reason, and nodes at fault
  failures.jsonl  a line for each start that ended by itself, or by a time limit before it got any further
  failed_ranks.jsonl  a line for each rank that ended a start: job, restart, rank, node, exit_status, error
  logs/           rank_<r>.log over all starts, launcher.log; stacks_<r>.txt, where `launcher stacks` found the threads
  evaluate/       the same of the job that evaluates the run, and evaluate.log
  submitit/       sbatch text, pickles, output of the batch script
  revision.txt, diff.patch, packages.txt
"""

import contextlib
import os
import shlex
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher import start_rows
from launcher.cluster import Profile
from moco_dist import config as configs
from moco_dist import files
from moco_dist.config.section import Positive, Section
from moco_dist.errors import UserError, masked
from moco_dist.run import checkpoints, paths, status

STARTS_WITHOUT_PROGRESS = 3
"""After so many starts from one step that ended by themselves a job is given up."""
BEFORE_FIRST_STEP = "its time limit came before its first step"
BEFORE_SAVED = "its time limit came before it had saved"
"""The reasons told where a time limit ends a start that has brought the run no further."""
SENT_AGAIN = "sent again"
"""The reason of a status that a submission writes, so that it is not taken for its job's."""


class Submission(Section):
    """One submission of a run."""

    job: str = ""
    """SLURM's id: `12`, `12_3`, or `12@gpu` on a cluster that was named; of a local job, its controller's process."""
    earlier_jobs: tuple[str, ...] = ()
    """Jobs of this submission before it, which SLURM would not requeue."""
    left_out: tuple[str, ...] = ()
    """Nodes that its later starts leave out, since earlier ones failed on them."""
    after: str | None = None
    """Other jobs that it waits for, in sbatch's words."""
    then: tuple[str, ...] | None = None
    """Options of the evaluation that follows when the run is done; None for no evaluation."""
    executor: Literal["slurm", "local"] = "slurm"
    """The executor that runs the job."""
    started: str = ""
    """When a local job's controller started, by moco_dist.run.lease.process_start; empty for SLURM's jobs."""
    submitted: str = ""
    """Local time with its distance from UTC, ISO 8601."""
    name: str = "moco-dist"
    """Name of the job."""
    nodes: Positive = 1
    """Nodes that it asked for; where `least_nodes` is set, at most."""
    least_nodes: Positive | None = None
    """Nodes that a start takes at least, of what is idle then; unset, `nodes`."""
    profile: Profile = Profile()
    """The profile with the overrides."""
    code: str = ""
    """Digest of the code, and its folder under code/."""
    stage: str | None = None
    """Archive of the data that each node unpacks."""
    sweep: str | None = None
    """Folder of the sweep that it is a member of."""
    values: dict[str, Any] | None = None
    """Values by key that distinguish it from the sweep's other members."""

    @property
    def fewest_nodes(self) -> int:
        """Return with how many nodes a start makes do."""
        return self.least_nodes or self.nodes

    @property
    def ranks(self) -> int:
        """Return how many ranks it has, or at most has."""
        return self.nodes * self.profile.gpus_per_node


@dataclass(unsafe_hash=True)
class Launch:
    """The launcher's part of a run directory."""

    run_dir: Path

    def __post_init__(self) -> None:
        self.paths = paths.RunPaths(self.run_dir)
        self.folder = self.run_dir / "launch"
        self.job_file = self.folder / "job.json"
        self.config_file = self.folder / "config.yaml"
        self.starts_file = self.folder / "starts.jsonl"
        self.ends_file = self.folder / "ends.jsonl"
        self.failed_ranks_file = self.folder / "failed_ranks.jsonl"
        self.failures_file = self.folder / "failures.jsonl"
        self.logs = self.folder / "logs"
        self.submitit = self.folder / "submitit"
        self.evaluation = self.folder / "evaluate"
        self.evaluation_log = self.evaluation / "evaluate.log"

    @property
    def requeue_command(self) -> str:
        """Return the command that sends the run again, with its name where it lies in a folder runs/."""
        run_dir = self.run_dir.absolute()
        return (
            f"python -m launcher requeue {shlex.quote(run_dir.name if run_dir.parent.name == 'runs' else str(run_dir))}"
        )

    def log(self, rank: int) -> Path:
        """Return the log of a rank, over all starts."""
        return self.logs / f"rank_{rank:05d}.log"

    def stacks(self, rank: int) -> Path:
        """Return the file that a rank of the last start writes its stacks to, when it is told to."""
        return self.logs / f"stacks_{rank:05d}.txt"

    def stop_mark(self, job: str, restart: int) -> Path:
        """Return the file that is there once this start of a job was told to stop."""
        return self.folder / f".stop-{job}-{restart}"

    def requeue_mark(self, job: str, restart: int) -> Path:
        """Return the file that is there when this start wants another one, and could not ask SLURM itself."""
        return self.folder / f".requeue-{job}-{restart}"

    def codes(self, submission: Submission) -> Path:
        """Return the folder of the copies of the code; the members of a sweep share it."""
        return Launch(Path(submission.sweep) if submission.sweep else self.run_dir).folder / "code"

    def code(self, submission: Submission) -> Path:
        """Return the folder of the code that the job runs."""
        return self.codes(submission) / submission.code

    def submission(self) -> Submission | None:
        """Read the last submission; None where there was none, or another version's.

        Raises:
            UserError: the directory is another user's.
        """
        try:
            refuse_others(self.run_dir)
            return Submission.model_validate_json(files.read_text(self.job_file))
        except (OSError, ValueError):
            return None

    def config(self) -> configs.Config:
        """Load the config as it was sent, with this run directory, which may have been moved. Raises UserError."""
        return configs.load(self.config_file).at(self.run_dir)

    def write(self, submission: Submission) -> None:
        """Write a submission as the last one. Raises OSError."""
        files.write_text(self.job_file, submission.model_dump_json(indent=1) + "\n")

    def starts(self) -> list[dict[str, Any]]:
        """Read every start so far, of all jobs of the run: `job`, `restart`, `step`, `time`, `nodes`, `gpus`."""
        return start_rows.read(self.starts_file)

    def start(self, job: str, restart: int) -> dict[str, Any] | None:
        """Read one start of a job, the last one that is noted; None where it is not."""
        return next(iter(start_rows.of_start(self.starts(), job, restart)[-1:]), None)

    def add_start(self, **row: Any) -> None:
        """Add a start. Raises OSError."""
        start_rows.add(self.starts_file, row)

    def ends(self) -> list[dict[str, Any]]:
        """Read how starts have ended, a row each: `job`, `restart`, `step`, `time`, `reason`, `bad_nodes`.

        Of several notes of one end, the first reason and the last time count. Without a time, nobody has seen it, and
        without a reason, it is not known.
        """
        ends: dict[tuple[str, object], dict[str, Any]] = {}
        for row in start_rows.read(self.ends_file):
            before = ends.get((row["job"], row.get("restart")), {})
            why: dict[str, Any] = {key: before[key] for key in ("reason", "bad_nodes") if key in before}
            time_seen = row.get("time") or before.get("time")
            ends[row["job"], row.get("restart")] = {**row, **why, "time": time_seen}
        return list(ends.values())

    def add_end(
        self, *, job: str, restart: int, reason: str | None = None, bad_nodes: Sequence[str] = (), seen: bool = True
    ) -> bool:
        """Note the end of a start. A disk that is full costs the note, and nothing else.

        Args:
            job: the job.
            restart: number of its starts before this one.
            reason: why it ends; None where that is noted by another call.
            bad_nodes: nodes that are at fault.
            seen: whether it ends now; else nobody has seen when it has.

        Returns:
            Whether the reason is the first one that is noted.
        """
        with contextlib.suppress(OSError):
            is_first = not any("reason" in row for row in start_rows.of_start(self.ends(), job, restart))
            row = {"job": job, "restart": restart, "step": self.checkpoint_step()}
            why = {} if reason is None else {"reason": reason, "bad_nodes": list(bad_nodes)}
            start_rows.add(self.ends_file, {**row, "time": time.time() if seen else None, **why})
            return is_first
        return False

    def failures(self) -> list[dict[str, Any]]:
        """Read every start so far that ended by itself: `job`, `restart`, `step` that it began from, `reason`."""
        return start_rows.read(self.failures_file)

    def add_failure(self, *, job: str, restart: int, reason: str) -> None:
        """Add a start that has ended by itself, unless it is there. Raises OSError."""
        if start_rows.of_start(self.failures(), job, restart):
            return
        start = self.start(job, restart)
        step = start["step"] if start else self.checkpoint_step()
        start_rows.add(self.failures_file, {"job": job, "restart": restart, "step": step, "reason": reason})

    def failed_ranks(self, job: str, restart: int) -> list[dict[str, Any]]:
        """Read which ranks have ended a start: `rank`, `node`, `exit_status` and `error`."""
        return start_rows.of_start(start_rows.read(self.failed_ranks_file), job, restart)

    def add_failed_rank(self, **row: Any) -> None:
        """Add a rank that has ended a start. Raises OSError."""
        start_rows.add(self.failed_ranks_file, {"step": self.checkpoint_step(), **row})

    def has_rows(self) -> bool:
        """Return whether the trainer has written figures."""
        with contextlib.suppress(OSError):
            return self.paths.metrics.stat().st_size > 0
        return False

    def stands_still(self, job: str) -> bool:
        """Return whether the last three starts of a job that failed began from where the run still is.

        Starts that SLURM has ended say nothing: a preemption, a requeue, a lost node; but for a time limit that leaves
        no time to get any further.
        """
        last = self.submission()
        jobs = {job, *(last.earlier_jobs if last and last.job == job else ())}
        failed = [row for row in self.failures() if row["job"] in jobs]
        steps = {(row["job"], row.get("restart")): row["step"] for row in failed}  # several nodes may note one start
        return [*steps.values()][-STARTS_WITHOUT_PROGRESS:] == [self.checkpoint_step()] * STARTS_WITHOUT_PROGRESS

    def give_up(self) -> str:
        """Write the note that the run makes no progress. Returns why, in words."""
        last, failures = self.status(), self.failures()
        reason = f"no progress in {STARTS_WITHOUT_PROGRESS} starts from step {self.checkpoint_step()}"
        cause = failures[-1].get("reason") if failures else last.reason
        reason = f"{reason}; the last: {cause}" if cause else reason
        status.write(self.run_dir, "crashed", last.step, reason)
        return reason

    def say(self, line: str) -> None:
        """Print a line on stderr, and add it to the job's own log."""
        text = masked(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}")
        with contextlib.suppress(OSError):  # a full disk
            print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError), files.open_text(self.logs / "launcher.log", "a") as log:
            log.write(text + "\n")

    def checkpoint_step(self) -> int:
        """Return the step of the last checkpoint, by its file's name, or 0. The trainer checks that it is whole."""
        return checkpoints.CheckpointIndex(self.paths.checkpoints).last()

    def status(self) -> status.Status:
        """Read how the run stands, by the trainer's own account."""
        return status.read(self.run_dir)


def refuse_others(folder: Path) -> None:
    """Refuse a folder that another user owns or may write to: what lies in it runs as this user.

    Raises:
        UserError: it is such a folder.
        OSError: there is no such folder.
    """
    details = folder.stat()
    if details.st_uid != os.getuid():
        raise UserError.of("run.dir", folder, "belongs to another user", "choose a directory of your own")
    if details.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError.of("run.dir", folder, "others may write to it", f"chmod go-w {folder}")


def run_dirs(folder: Path) -> list[Path]:
    """Find run directories that the launcher has sent: the folder itself and those right inside it, by name."""
    folders = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())] if folder.is_dir() else []
    return [place for place in folders if Launch(place).job_file.is_file()]
