"""What runs on the nodes: a task a node that starts this node's ranks, restarts them, and heeds SLURM's signals.

Every way of stopping is one way: the ranks save and write status.json, and the next start, here or after a requeue,
goes on from the run directory. Nothing is kept in submitit's pickles.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from launcher import slurm
from launcher.job import stage
from launcher.record import STARTS_WITHOUT_PROGRESS, Launch, Submission, refuse_others
from moco_dist.errors import UserError
from moco_dist.run import status

_WAIT_FOR_FIRST_SECONDS = 120.0
_LOCAL_REQUEUE = 144  # what submitit's local controller starts a task again for


@dataclass(frozen=True)
class Place:
    """This task among the tasks of the job."""

    job: str
    """`12`, or `12_3` for a member of an array: the id that names this member alone."""
    restart: int
    """Starts of the job before this one."""
    node: int
    hostnames: tuple[str, ...]
    task: int
    local_task: int
    executor: str

    @classmethod
    def here(cls, launch: Launch) -> Place:
        """Of this process, as SLURM or the local controller tells."""
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

    def port(self, turn: int) -> int:
        """A port for the ranks to meet at, another one for each start: the last one's may still be taken."""
        return 10000 + zlib.crc32(f"{self.job} {self.restart} {turn}".encode()) % 20000


@dataclass(frozen=True)
class Training:
    """The callable that submitit pickles, and runs once a task at every start of the job."""

    run_dir: str
    submission: Submission
    data_root: str = ""
    """With an archive of the data: where the root lies in it."""

    def __call__(self) -> dict[str, Any]:
        """Start the ranks and see them through. Returns how the run stands; SystemExit where it does not go on."""
        try:
            refuse_others(Path(self.run_dir))
            return Start(self).run()
        except (UserError, OSError) as error:  # another start would find it so too, and could not count itself
            print(f"launcher: {self.run_dir}: {error}", file=sys.stderr, flush=True)
            raise SystemExit(status.EXIT_CODES["user_error"]) from None


class Start:
    """One start of the job, as one of its tasks sees it."""

    def __init__(self, training: Training) -> None:
        self.run_dir, self.launch = training.run_dir, Launch(Path(training.run_dir))
        self.submission, self.profile = training.submission, training.submission.profile
        self.data_root = training.data_root
        self.place = Place.here(self.launch)
        self.stop_mark = self.launch.stop_mark(self.place.job, self.place.restart)
        self._requeue_mark = self.launch.requeue_mark(self.place.job, self.place.restart)

    def run(self) -> dict[str, Any]:
        """From the ranks' start to the end of this start."""
        stop, place = Stop(self), self.place
        os.environ.update(self._environment())
        if place.restart and (ended := self.ended()):
            return self._end(ended)
        if self.launch.stands_still(place.job, starts=place.restart):  # the first task may have noted this one already
            self._give_up()
        if place.first:
            step = self.launch.checkpoint_step()
            nodes = list(place.hostnames)
            self.launch.add_start(job=place.job, restart=place.restart, step=step, time=time.time(), nodes=nodes)
            self.say(f"job {place.job}, start {place.restart}, from step {step} on {', '.join(nodes)}")
        overrides = self._staged()
        turn = 0
        while stop.asked is None:
            completed = self._elastic(overrides, turn) if self.profile.tasks == "node" else self._one_rank(overrides)
            if stop.asked or not completed or status.read(self.launch.run_dir)[0] != "stopped":
                break
            turn += 1  # the agents themselves had stopped the ranks, for a node that came late
        if stop.asked:
            self._after_stop(stop)
        return self._end(self.ended() or "crashed")

    def ended(self) -> status.State | None:
        """How the run has ended for good, if it has."""
        state = status.read(self.launch.run_dir)[0]
        return state if state in ("done", "user_error", "diverged") else None

    def workers(self) -> list[int]:
        """Processes of this node's ranks."""
        found = []
        for children in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in children.read_text().split()]
        return [pid for pid in found if b"launcher.job.worker" in _command(pid)]

    def say(self, line: str) -> None:
        """A line in the job's own log, and on its stderr."""
        text = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} node {self.place.node}: {line}"
        print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError), (self.launch.logs / "launcher.log").open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def requeue(self) -> bool:
        """Ask to be started again. Returns whether that was granted; if not, the batch script asks after srun."""
        if self.place.executor == "local":
            return True
        try:
            slurm.requeue(self.place.job)
        except (slurm.Refused, slurm.Unavailable) as error:
            self.say(f"cannot requeue itself ({error}): the batch script is left to")
            with contextlib.suppress(OSError):
                self._requeue_mark.touch()
            return False
        self.say("requeued")
        return True

    def _environment(self) -> dict[str, str]:
        """Variables of the ranks."""
        interface = self.profile.network_interface
        return {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            **({"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}),
            **self.profile.environment,
            "MOCO_DIST_JOB": self.place.job,
            "MOCO_DIST_RESTART": str(self.place.restart),
        }

    def _give_up(self) -> NoReturn:
        """Say that the job stands still, and end it for good."""
        _, step, last = status.read(self.launch.run_dir)
        reason = f"no progress in {STARTS_WITHOUT_PROGRESS} starts from step {self.launch.checkpoint_step()}"
        if self.place.first:
            status.write(self.launch.run_dir, "crashed", step, f"{reason}; the last: {last}" if last else reason)
            self.say(reason)
        raise SystemExit(1)

    def _staged(self) -> list[str]:
        """Overrides of the config that this node needs: where it has unpacked the data."""
        if not self.submission.stage:
            return []
        try:
            folder = stage.unpack(Path(self.submission.stage), Path(self.profile.local_disk))
        except UserError as error:
            status.write(self.launch.run_dir, "user_error", self.launch.checkpoint_step(), str(error))
            self.say(str(error))
            raise SystemExit(status.EXIT_CODES["user_error"]) from None
        return [f"data.root={folder / self.data_root}"]

    def _worker(self, overrides: list[str]) -> list[str]:
        ranks = str(self.submission.ranks)
        return ["-u", "-m", "launcher.job.worker", self.run_dir, ranks, str(self.stop_mark), *overrides]

    def _elastic(self, overrides: list[str], turn: int) -> bool:
        """Run this node's ranks under torch's elastic agent. Returns whether all ended with 0."""
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        place, profile = self.place, self.profile
        patience = 3600 if self.submission.stage else 600  # until all nodes are there
        config = LaunchConfig(
            min_nodes=profile.min_nodes or len(place.hostnames),
            max_nodes=len(place.hostnames),
            nproc_per_node=profile.gpus_per_node,
            run_id=f"{place.job}.{place.restart}.{turn}",
            rdzv_backend="c10d",
            rdzv_endpoint=f"{place.hostnames[0]}:{place.port(turn)}",
            rdzv_configs={
                "is_host": place.node == 0,
                "join_timeout": patience,
                "read_timeout": patience,
                "last_call_timeout": 30,  # for late nodes, once enough are there to go on without them
                "keep_alive_interval": 5,
                "keep_alive_max_attempt": 6,
            },
            max_restarts=profile.max_restarts,
            monitor_interval=0.2,
            local_addr=place.hostnames[place.node],
            signals_to_handle="SIGINT",  # TERM and USR2 are ours
        )
        try:
            elastic_launch(config, sys.executable)(*self._worker(overrides))
            return True
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            self.say(f"rank {rank} failed with exit status {failure.exitcode}; this start has no restarts left")
        except SignalException:
            raise SystemExit(128 + signal.SIGINT) from None
        except (RuntimeError, OSError) as error:  # the rendezvous: the other nodes are gone
            self.say(f"the nodes have lost each other: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return False

    def _one_rank(self, overrides: list[str]) -> bool:
        """Run one rank in a process of its own. Returns whether it ended with 0."""
        place = self.place
        ranks = {"RANK": place.task, "LOCAL_RANK": place.local_task, "WORLD_SIZE": self.submission.ranks}
        ranks["LOCAL_WORLD_SIZE"] = self.profile.gpus_per_node
        meeting = {"MASTER_ADDR": place.hostnames[0], "MASTER_PORT": str(place.port(0))}
        environment = {**os.environ, **meeting, **{name: str(value) for name, value in ranks.items()}}
        return subprocess.run([sys.executable, *self._worker(overrides)], env=environment).returncode == 0

    def _after_stop(self, stop: Stop) -> None:
        """Wait for SLURM's verdict, once the ranks have saved. Returns where the run was at its end just then."""
        stop.over.wait()
        if self.ended():
            return
        if self.place.executor == "local":
            os._exit(_LOCAL_REQUEUE if stop.asked == signal.SIGUSR2 else status.EXIT_CODES["stopped"])
        while not self._requeue_mark.exists():
            time.sleep(1)
        raise SystemExit(status.EXIT_CODES["stopped"])

    def _end(self, state: status.State) -> dict[str, Any]:
        """End this start: a run that is done returns, a crashed one is requeued, another one fails."""
        _, step, reason = status.read(self.launch.run_dir)
        if state == "done":
            return {"state": state, "step": step}
        self.say(f"{state} at step {step}: {reason}")
        if state == "crashed" and self.profile.tasks == "node":
            self._try_again()
        raise SystemExit(status.EXIT_CODES[state])

    def _try_again(self) -> None:
        """Requeue a crashed job, other nodes may serve it better; the other tasks wait for that."""
        if self.launch.stands_still(self.place.job):
            self._give_up()
        if self.place.executor == "local":
            os._exit(_LOCAL_REQUEUE)
        deadline = time.monotonic() + _WAIT_FOR_FIRST_SECONDS
        granted = self.place.first and self.requeue()
        while granted or (time.monotonic() < deadline and not self._requeue_mark.exists()):
            time.sleep(1)


class Stop:
    """SLURM's signals. The handlers do nothing; a thread reads what arrived and acts, whatever the main thread does.

    USR2, ahead of a time limit or a preemption: the ranks save, then the job asks to be requeued. TERM, from scancel,
    an outside requeue, or a preemption without USR2: the ranks save, and the task stays alive until SLURM ends it,
    since a job that ends on TERM counts as failed and is not requeued.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self.asked: signal.Signals | None = None
        self.over = threading.Event()
        """Set when what was asked for is done."""
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._serve, name="stop", daemon=True).start()

    def _serve(self) -> None:
        """Heed the first signal, and an end that another node's task has come to while this one waits for it."""
        heeded = {int(signal.SIGUSR2), int(signal.SIGTERM)}
        while self.asked is None:
            ready, _, _ = select.select([self._reader], [], [], 5.0)
            numbers = heeded & set(os.read(self._reader, 64)) if ready else set()
            if not ready and len(self._start.place.hostnames) > 1 and not self._start.workers():
                self._heed_others()
            if numbers:
                self._stop(signal.SIGUSR2 if signal.SIGUSR2 in numbers else signal.SIGTERM)

    def _heed_others(self) -> None:
        """End this task, whose main thread waits for a node that has ended the run for good."""
        state = self._start.ended()
        if state in ("user_error", "diverged"):
            self._start.say(f"another node has ended the run: {state}")
            os._exit(status.EXIT_CODES[state])

    def _stop(self, asked: signal.Signals) -> None:
        """Have the ranks save; then requeue, if that was asked for. Further signals change nothing."""
        start, self.asked = self._start, asked
        start.say(f"{asked.name}: the ranks are told to save")
        with contextlib.suppress(OSError):
            start.stop_mark.touch()
        deadline = time.monotonic() + start.profile.signal_seconds - 10
        while (ranks := start.workers()) and time.monotonic() < deadline:
            for pid in ranks:  # again and again: one that has not got so far yet would pass over a single word
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR2)
            time.sleep(0.5)
            if status.read(start.launch.run_dir)[0] != "running":
                break
        if start.place.first:
            state, step, _ = status.read(start.launch.run_dir)
            start.say(f"{state or 'nothing was begun'} at step {step}")
            if asked == signal.SIGUSR2 and state != "done":
                start.requeue()
        self.over.set()


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
