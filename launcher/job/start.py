"""Describe one start of the job as one of its tasks sees it: what was sent, how the run stands, log and requeue.

A *start* is the time between SLURM's starting the job and its end or requeue. Within a start, the ranks may be started
several times; each of these is an *attempt*.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from launcher import slurm
from launcher.record import Launch, Submission
from moco_dist.run import status


@dataclass(frozen=True)
class Place:
    """The place of this task among the tasks of the job, as SLURM or submitit's local controller says."""

    job: str
    """`12`, or `12_3` for a member of an array: the id that names this member alone."""
    restart: int
    """Number of starts of the job before this one."""
    node: int
    hostnames: tuple[str, ...]
    task: int
    local_task: int
    executor: str

    @classmethod
    def here(cls, launch: Launch) -> Place:
        """Return the place of this process."""
        import submitit  # what sends the job has it; commands that only import this module may run without

        env = submitit.JobEnvironment()
        restart = os.environ.get("SLURM_RESTART_COUNT")
        if restart is None and env.cluster == "local":  # its controller does not count
            restart = str(sum(start["job"] == env.job_id for start in launch.starts()))
        return cls(
            job=env.job_id,
            restart=int(restart or 0),
            node=env.node,
            hostnames=tuple(env.hostnames) if env.num_nodes > 1 else ("127.0.0.1",),
            task=env.global_rank,
            local_task=env.local_rank,
            executor=env.cluster,
        )

    @property
    def first(self) -> bool:
        """Whether this task acts for the whole job."""
        return self.task == 0

    @property
    def local(self) -> bool:
        """Whether the job runs without SLURM."""
        return self.executor == "local"

    def port(self, attempt: int) -> int:
        """Return the port that the ranks of an attempt meet at: each has its own, the last one's may still be taken."""
        return 10000 + zlib.crc32(f"{self.job} {self.restart} {attempt}".encode()) % 20000


class Start:
    """One start of the job.

    Args:
        run_dir: run directory.
        submission: what was sent.
        data_root: with an archive of the data, where the root lies in it.
    """

    def __init__(self, run_dir: Path, submission: Submission, data_root: str) -> None:
        self.launch, self.submission, self.data_root = Launch(run_dir), submission, data_root
        self.profile = submission.profile
        self.place = Place.here(self.launch)
        self.stop_mark = self.launch.stop_mark(self.place.job, self.place.restart)
        self.requeue_mark = self.launch.requeue_mark(self.place.job, self.place.restart)

    def ended(self) -> status.State | None:
        """Return how the run has ended for good; None while it has not."""
        state = self.launch.status().state
        return state if state in ("done", "user_error", "diverged") else None

    def say(self, line: str) -> None:
        """Print a line on stderr, and add it to the job's own log."""
        text = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} node {self.place.node}: {line}"
        print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError), (self.launch.logs / "launcher.log").open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def requeue(self) -> bool:
        """Ask SLURM to start the job again.

        Returns:
            Whether SLURM agreed; if not, a mark is left, by which the batch script asks once srun has ended.
        """
        if self.place.local:
            return True
        try:
            slurm.requeue(self.place.job)
        except (slurm.Refused, slurm.Unavailable) as error:
            self.say(f"cannot requeue itself ({error}): the batch script is left to")
            with contextlib.suppress(OSError):
                self.requeue_mark.touch()
            return False
        self.say("requeued")
        return True
