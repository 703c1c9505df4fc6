"""Events that befall jobs on a cluster: each does it to a run, and says how the run must end.

Every run here must end done, in one run directory with each step once, and bit for bit as a run that was left alone.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm.devcluster import Settings, processes
from slurm.devcluster.daemons import marks
from tests import jobs
from tests.slurm.jobs import STEPS, Sent, launcher

EARLY = 25  # steps after which things happen: behind some checkpoints, ahead of most of the run


@dataclass(frozen=True)
class Event:
    """Something that happens to a job."""

    name: str
    disturb: Callable[[Sent], None]
    starts: int
    """Starts that the job must have had in the end, at least."""
    settings: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    cluster: dict[str, Any] = field(default_factory=dict)
    """Settings that the cluster must have."""
    environment: dict[str, str] = field(default_factory=dict)
    """Further variables of the shell that sends the job."""

    def fits(self, settings: Settings) -> bool:
        """Tell whether a cluster is as this event needs it."""
        return all(getattr(settings, key) == value for key, value in self.cluster.items())


def left_alone(run: Sent) -> None:
    """Nothing happens."""


def time_limit_twice(run: Sent) -> None:
    """SLURM ends a start after a minute, and tells it to save up to a minute before."""
    run.until(lambda: run.starts() >= 3, "third start", 240)
    run.has_time()


def preempted(run: Sent) -> None:
    """A job of a higher partition takes the nodes."""
    run.until_step(EARLY)
    run.preempt()


def told_to_save(run: Sent) -> None:
    """USR2 to all tasks, as ahead of a time limit."""
    run.until_step(EARLY)
    run.signal("USR2")


def requeued_from_outside(run: Sent) -> None:
    """An administrator's scontrol requeue: the tasks get TERM."""
    run.until_step(EARLY)
    run.cluster.call("scontrol", "requeue", run.job)


def requeued_by_the_launcher(run: Sent) -> None:
    """The user's own."""
    run.until_step(EARLY)
    done = launcher(run.cluster, "requeue", str(run.run_dir))
    assert done.returncode == 0, done.stdout + done.stderr


def cancelled_and_sent_again(run: Sent) -> None:
    """scancel, and a second job into the same run directory."""
    run.until_step(EARLY)
    run.cluster.call("scancel", run.job)
    run.until(lambda: run.state() == "CANCELLED", "end of the job")
    assert jobs.status(run.run_dir)["state"] == "stopped"
    run.send()


def cancelled_by_the_launcher(run: Sent) -> None:
    """The launcher's cancel, which waits for the save, and a second job."""
    run.until_step(EARLY)
    done = launcher(run.cluster, "cancel", str(run.run_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert jobs.checkpoints(run.run_dir)[-1].stem == f"step_{jobs.last_step(run.run_dir):09d}", "it has not saved"
    run.send()


def worker_killed(run: Sent) -> None:
    """One rank gets SIGKILL; the others are started again with it, in the same allocation."""
    run.until_step(EARLY)
    run.kill_worker()


def all_workers_killed_twice(run: Sent) -> None:
    """Every rank gets SIGKILL, and again in the next start."""
    for step in (EARLY, 3 * EARLY):
        run.until_step(step)
        run.kill_worker()
        run.kill_worker()
        time.sleep(1)


def node_dies(run: Sent) -> None:
    """The second node is gone, for longer than SLURM waits for it."""
    _lose(run, 1, until=lambda: run.state() == "PENDING")


def first_node_dies(run: Sent) -> None:
    """The node of the batch script and of rank 0 is gone."""
    _lose(run, 0, until=lambda: run.state() == "PENDING")


def node_restarts(run: Sent) -> None:
    """The second node is back before SLURM has missed it."""
    run.until_step(EARLY)
    node = run.cluster.nodes[1]
    run.cluster.kill_node(node)
    time.sleep(2)
    run.cluster.start_node(node)


def node_lost_for_good(run: Sent) -> None:
    """The second node is gone; with min_nodes the first goes on alone, in the same start."""
    _lose(run, 1, until=lambda: run.wait() == "COMPLETED")
    assert run.starts() == 1, "it was requeued"


def preempted_at_start(run: Sent) -> None:
    """A job of a higher partition takes the nodes as soon as the start is noted."""
    run.until_start(1)
    run.preempt()


def stopped_before_its_first_step(run: Sent) -> None:
    """Requeued from outside as soon as a start is noted, three times in a row."""
    for starts in (1, 2, 3):
        run.until_start(starts)
        run.cluster.call("scontrol", "requeue", run.job)
    assert not jobs.last_step(run.run_dir), "it has begun to train"


def controller_away(run: Sent) -> None:
    """The job wants to be requeued while nobody is there who could do it."""
    run.until_step(EARLY)
    tasks = run.tasks()
    processes.kill(functools.partial(processes.find, marks(run.cluster.directory), "slurmctld"))
    try:
        for pid in tasks:
            os.kill(pid, signal.SIGUSR2)
        run.until(lambda: "tried again, as long as the allocation lasts" in run.log(), "try to requeue")
        time.sleep(10)
    finally:
        run.cluster.start()


def may_not_be_requeued(run: Sent) -> None:
    """A site that forbids requeues; another job goes on with the run."""
    run.until_step(EARLY)
    run.cluster.call("scontrol", "update", f"JobId={run.job}", "Requeue=0")
    run.signal("USR2")
    run.until(lambda: run.last_job() != run.job, "other job")
    run.job = run.last_job()


def one_node_taken(run: Sent) -> None:
    """A job of a higher partition takes one of two nodes for long; the run goes on with the other at once."""
    run.until_step(EARLY)
    node = run.cluster.nodes[1]
    taken = ["-p", "high", "--nodelist", node, f"--gpus-per-node={run.cluster.settings.gpus}", "-o", "/dev/null"]
    other = run.cluster.call("sbatch", "--parsable", *taken, "--wrap", "sleep 600").strip()
    try:
        run.until_start(2)
    finally:
        run.cluster.call("scancel", other)
    rows = (run.run_dir / "launch" / "starts.jsonl").read_text().splitlines()
    nodes = [json.loads(row)["nodes"] for row in rows]
    assert nodes == [list(run.cluster.nodes), [run.cluster.nodes[0]]], nodes


def node_fails_twice(run: Sent) -> None:
    """The only rank that dies is on one node, and then on the same one again, which is left out from then on."""
    record = run.run_dir / "launch" / "job.json"
    for start in range(1, 5):  # SLURM might take the two nodes by turns
        run.until_start(start)
        if json.loads(record.read_text())["left_out"]:
            return
        run.until_step(jobs.last_step(run.run_dir) + 5)
        run.kill_worker()
    raise AssertionError("no node is left out")


def _lose(run: Sent, number: int, until: Callable[[], object]) -> None:
    """Kill a node, and bring it back when something has come about."""
    run.until_step(EARLY)
    node = run.cluster.nodes[number]
    run.cluster.kill_node(node)
    try:
        run.until(until, "word from SLURM", 240)
    finally:
        run.cluster.start_node(node)


_MINUTE = ("--time-minutes", "1", "--signal-seconds", "15")

_NO_SCONTROL = ("--cluster", str(Path(__file__).with_name("no_scontrol.yaml")))

OF_A_SHELL = {
    "SBATCH_EXPORT": "NONE",
    "SBATCH_PARTITION": "high",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_JOB_NAME": "theirs",
    "SLURM_CPU_BIND": "mask_cpu:0x0",
    "SLURM_RESTART_COUNT": "5",
}
"""Variables that a site's defaults, or another job, may leave in the environment."""

EVENTS = (
    Event("left alone", left_alone, 1),
    Event("variables of SLURM's in the shell", told_to_save, 2, environment=OF_A_SHELL),
    Event("preempted at start", preempted_at_start, 2, cluster={"preempt_signal": True}),
    Event("time limit, twice", time_limit_twice, 3, {"optim.steps": 2 * STEPS}, _MINUTE),
    Event("preempted, told by USR2", preempted, 2, cluster={"preempt_signal": True}),
    Event("preempted, told by TERM", preempted, 2, cluster={"preempt_signal": False}),
    Event("told by USR2, in a container", told_to_save, 2, {}, _NO_SCONTROL),
    Event("scontrol requeue", requeued_from_outside, 2),
    Event("launcher requeue", requeued_by_the_launcher, 2),
    Event("scancel, sent again", cancelled_and_sent_again, 2),
    Event("launcher cancel, sent again", cancelled_by_the_launcher, 2),
    Event("a worker killed", worker_killed, 1),
    Event("workers killed, twice", all_workers_killed_twice, 1),
    Event("second node dies", node_dies, 2),
    Event("first node dies", first_node_dies, 2),
    Event("second node restarts", node_restarts, 2),
    Event("second node lost, min_nodes=1", node_lost_for_good, 1, {}, ("--min-nodes", "1")),
    Event("stopped before its first step, 3 times", stopped_before_its_first_step, 4),
    Event("controller away at requeue", controller_away, 2),
    Event("requeue forbidden", may_not_be_requeued, 2),
    Event("one of 1-2 nodes taken", one_node_taken, 2, {}, ("--nodes", "1-2"), {"preempt_signal": True}),
    Event("a node fails twice", node_fails_twice, 3, {}, ("--nodes", "1", "--max-restarts", "0")),
    Event("one task a rank, preempted", preempted, 2, {}, ("--tasks", "rank"), {"preempt_signal": True}),
)
