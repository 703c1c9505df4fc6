"""Describe one start of the job as one of its tasks sees it, and start this task's ranks, by torch's elastic agent.

A *start* is the time between SLURM's starting the job and its end or requeue. Within a start, the ranks may be started
several times; each of these is an *attempt*.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher import job_ids, slurm, slurm_jobs
from launcher.cluster import Event
from launcher.job import bad_nodes, notify
from launcher.record import Launch, Submission
from moco_dist.errors import reason
from moco_dist.run import status

_WORKER = "launcher.job.worker"
_REPLACED = "ends, since another job goes on with the run"


class Start:
    """One start of the job.

    Args:
        run_dir: run directory.
        submission: what was sent.
        data_root: with an archive of the data, where the root lies in it.
    """

    def __init__(self, run_dir: Path, submission: Submission, data_root: str) -> None:
        import submitit  # what sends the job has it; commands that only import this module may run without

        self.launch, self.submission, self.data_root = Launch(run_dir), submission, data_root
        self.profile = submission.profile
        place = submitit.JobEnvironment()  # by SLURM, or by submitit's local controller
        self.job = job_ids.address(place.job_id, self.profile.slurm_cluster if place.cluster != "local" else None)
        """`12`, or `12_3` for a member of an array: the id that names this member alone; `12@gpu` with its cluster."""
        self.node, self.task, self.local_task = place.node, place.global_rank, place.local_rank
        self.first = self.task == 0
        """True where this task acts for the whole job."""
        self.began = time.time()
        """When this task has started, in seconds since the epoch."""
        self.told_to_end = False
        """True once SLURM ends the job without having been asked by it: it is cancelled, requeued or preempted."""
        self.local = place.cluster == "local"
        """True where the job runs without SLURM."""
        self.hostnames = tuple(place.hostnames)
        """Names of the nodes."""
        self.addresses = self.hostnames if place.num_nodes > 1 else ("127.0.0.1",)
        """The addresses at which the nodes find each other: a single one needs no network."""
        self.ranks = self.profile.gpus_per_node * max(place.num_nodes, 1)
        """Number of ranks when all nodes of this start are there."""
        before = sum(start["job"] == self.job for start in self.launch.starts()) if self.local else 0
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT") or before)  # the local controller does not count
        """Number of starts of the job before this one."""
        self.stop_mark = self.launch.stop_mark(self.job, self.restart)
        self.requeue_mark = self.launch.requeue_mark(self.job, self.restart)

    def port(self, attempt: int) -> int:
        """Return the port that the ranks of an attempt meet at: each has its own, the last one's may still be taken."""
        key = f"{self.launch.run_dir} {self.job} {self.restart} {attempt}"  # of two clusters, jobs may have one number
        return 10000 + zlib.crc32(key.encode()) % 20000

    def ended(self) -> status.State | None:
        """Return how the run has ended for good; None while it has not."""
        state = self.launch.status().state
        return state if state in ("done", "user_error", "diverged") else None

    def environment(self) -> dict[str, str]:
        """Return the variables that the ranks need."""
        interface = self.profile.network_interface
        return {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            **({"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}),
            **self.profile.environment,
            "PYTHONPATH": self._python_path(),
            "MOCO_DIST_JOB": self.job,
            "MOCO_DIST_RESTART": str(self.restart),
        }

    def _python_path(self) -> str:
        """Return where the ranks find Python's modules: the job's own copy of the code comes first."""
        own_and_inherited = (self.profile.environment.get("PYTHONPATH", ""), os.environ.get("PYTHONPATH", ""))
        places = [
            str(self.launch.code(self.submission)),
            *(place for path in own_and_inherited for place in path.split(os.pathsep)),
        ]
        return os.pathsep.join(dict.fromkeys(filter(None, places)))

    def note_rank(self, rank: int, exit_status: int, error: str) -> None:
        """Note that a rank of this node has ended this start."""
        row = {"job": self.job, "restart": self.restart, "rank": rank, "node": self.hostnames[self.node]}
        with contextlib.suppress(OSError):
            self.launch.add_failed_rank(**row, exit_status=exit_status, error=" ".join(error.split())[:300])

    def tell_of_end(self) -> None:
        """Tell the user that the run has ended, if this task acts for the whole job."""
        if self.first:
            events: tuple[Event, ...] = ("end",) if self.launch.status().state == "done" else ("failure", "end")
            notify.tell(self.launch, self.job, *events, last=True)

    def say(self, line: str) -> None:
        """Print a line on stderr, and add it to the job's own log, with the name of this node."""
        self.launch.say(f"{self.hostnames[self.node]}: {line}")

    @property
    def is_replaced(self) -> bool:
        """Return whether a job that was sent later goes on with the run, and this one is only to end.

        Between the sending of a job and its record, the record is that of the job before.
        """
        last = self.launch.submission()
        return last is not None and _sent_at(last) > _sent_at(self.submission) and not self.local

    def end_if_replaced(self) -> None:
        """End this task where another job goes on with the run, and waits for the end of this one.

        This one was cancelled, and has come back: a requeue that was asked for at the same moment undoes that.
        """
        if self.is_replaced:
            self.say(_REPLACED)
            raise SystemExit(status.EXIT_CODES["stopped"])

    def requeue(self) -> bool:
        """Ask SLURM to start the job again, unless SLURM ends it already, or another job goes on with the run.

        Returns:
            Whether SLURM agreed; if not, a mark is left, by which the batch script asks once srun has ended.
        """
        if self.local:
            return True
        if self.is_replaced:  # SLURM would start both, also if this one is cancelled at the same moment
            self.say(_REPLACED)
            return False
        at_fault = bad_nodes.repeated(self.launch)  # before: SLURM ends this task's processes then
        if self.told_to_end:  # SLURM would bring back a job that was cancelled
            self.say("asks for no other start, since SLURM ends the job")
            return False
        try:
            slurm_jobs.requeue(self.job)
        except (slurm.Refused, slurm.Unavailable) as error:
            self.say(f"cannot requeue itself ({error}): the batch script is left to")
            with contextlib.suppress(OSError):
                self.requeue_mark.touch()
            return False
        self.say("requeued")
        bad_nodes.leave_out(self.launch, self.job, at_fault)
        return True


def _sent_at(submission: Submission) -> float:
    """Return when a submission was sent, in seconds since the epoch: another shell may have another time zone."""
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.fromisoformat(submission.submitted).timestamp()
    return 0.0


def run_ranks(start: Start, overrides: list[str], attempt: int) -> bool:
    """Run this task's ranks until they end. Returns whether all of them ended with exit status 0."""
    return _run_node(start, overrides, attempt) if start.profile.tasks == "node" else _run_rank(start, overrides)


def rank_processes() -> list[int]:
    """Return the ids of the processes that run this task's ranks."""
    pids = []
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in children.read_text().split():
                with contextlib.suppress(OSError):
                    if _WORKER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                        pids.append(int(pid))
    return pids


def _arguments(start: Start, overrides: list[str]) -> list[str]:
    """Return Python's arguments that make it a rank of the job."""
    run_dir = str(start.launch.run_dir)
    return ["-u", "-m", _WORKER, run_dir, str(start.ranks), str(start.stop_mark), *overrides]


def _run_node(start: Start, overrides: list[str], attempt: int) -> bool:
    """Run this node's ranks under torch's elastic agent, which starts crashed ones again."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    try:
        elastic_launch(_agent(start, attempt), sys.executable)(*_arguments(start, overrides))
        return True
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        for failed, end in error.failures.items():
            message: Any = end.message  # a text, or what the rank itself has noted
            start.note_rank(failed, end.exitcode, str(message["message"] if isinstance(message, dict) else message))
        last = start.launch.status()
        why = f"{last.reason}; " if last.state == "crashed" else ""
        start.say(f"{why}rank {rank} failed with exit status {failure.exitcode}; this start has no restarts left")
    except SignalException:
        raise SystemExit(128 + signal.SIGINT) from None
    except (RendezvousError, RuntimeError, OSError) as error:  # the other nodes are gone, or a port is taken
        start.say(f"the nodes do not meet, or have lost each other: {reason(error.__cause__ or error)}")
    return False


def _agent(start: Start, attempt: int) -> Any:
    """Return the settings of the elastic agent, torch's LaunchConfig."""
    from torch.distributed.launcher.api import LaunchConfig

    patience_seconds = 3600 if start.submission.stage else 600  # until all nodes are there
    return LaunchConfig(
        min_nodes=min(start.profile.min_nodes or len(start.hostnames), len(start.hostnames)),  # fewer of --nodes 1-4
        max_nodes=len(start.hostnames),
        nproc_per_node=start.profile.gpus_per_node,
        run_id=f"{start.job}.{start.restart}.{attempt}",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{start.addresses[0]}:{start.port(attempt)}",
        rdzv_configs={
            "is_host": start.node == 0,
            "join_timeout": patience_seconds,
            "read_timeout": patience_seconds,
            "last_call_timeout": 30,  # for late nodes, once enough are there to go on without them
            "keep_alive_interval": 5,
            "keep_alive_max_attempt": 6,
        },
        max_restarts=start.profile.max_restarts,
        monitor_interval=0.2,
        local_addr=start.addresses[start.node],
        signals_to_handle="SIGINT",  # TERM and USR2 are ours
    )


def _run_rank(start: Start, overrides: list[str]) -> bool:
    """Run one rank in a process of its own."""
    ranks = {"RANK": start.task, "LOCAL_RANK": start.local_task, "WORLD_SIZE": start.ranks}
    ranks["LOCAL_WORLD_SIZE"] = start.profile.gpus_per_node
    meeting = {"MASTER_ADDR": start.addresses[0], "MASTER_PORT": str(start.port(0))}
    environment = {**os.environ, **meeting, **{name: str(value) for name, value in ranks.items()}}
    return subprocess.run([sys.executable, *_arguments(start, overrides)], env=environment).returncode == 0
