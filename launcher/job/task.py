"""Run a task of the job, one a node: it starts this node's ranks, restarts them, and heeds SLURM's signals.

Every way of stopping is one way: the ranks save and write status.json, and the next start, here or after a requeue,
goes on from the run directory. Nothing is kept in submitit's pickles.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from launcher.job import ranks, stage
from launcher.job.start import Start
from launcher.job.stop import Stop
from launcher.record import STARTS_WITHOUT_PROGRESS, Submission, refuse_others
from moco_dist import config as configs
from moco_dist.errors import UserError
from moco_dist.run import status

_WAIT_FOR_FIRST_SECONDS = 120.0
_LOCAL_REQUEUE = 144  # what submitit's local controller starts a task again for


@dataclass(frozen=True)
class Task:
    """The callable that submitit pickles, and runs once a task at every start of the job."""

    run_dir: str
    submission: Submission
    data_root: str = ""
    """With an archive of the data: where the root lies in it."""

    def __call__(self) -> dict[str, Any]:
        """Start the ranks and see them through. Returns how the run stands; SystemExit where it does not go on."""
        try:
            run_dir = Path(self.run_dir)
            refuse_others(run_dir)
            return _run(Start(run_dir, self.submission, self.data_root))
        except (UserError, OSError) as error:  # another start would find it so too, and could not count itself
            print(f"launcher: {self.run_dir}: {error}", file=sys.stderr, flush=True)
            raise SystemExit(status.EXIT_CODES["user_error"]) from None


def _run(start: Start) -> dict[str, Any]:
    """Run the ranks from the beginning of this start to its end."""
    stop, place = Stop(start), start.place
    os.environ.update(_environment(start))
    if place.restart and (state := start.ended()):
        return _end(start, state)
    if start.launch.stands_still(place.job, starts=place.restart):  # the first task may have noted this one already
        _give_up(start)
    if place.first:
        step = start.launch.checkpoint_step()
        nodes = list(place.hostnames)
        start.launch.add_start(job=place.job, restart=place.restart, step=step, time=time.time(), nodes=nodes)
        start.say(f"job {place.job}, start {place.restart}, from step {step} on {', '.join(nodes)}")
    overrides = _staged(start)
    attempt = 0
    while stop.signal is None:
        completed = ranks.run(start, overrides, attempt)
        if stop.signal or not completed or start.launch.status().state != "stopped":
            break
        attempt += 1  # the agents themselves had stopped the ranks, for a node that came late
    if stop.signal:
        _end_after_signal(start, stop)
    return _end(start, start.ended() or "crashed")


def _environment(start: Start) -> dict[str, str]:
    """Return the variables that the ranks need."""
    interface = start.profile.network_interface
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        **({"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}),
        **start.profile.environment,
        "MOCO_DIST_JOB": start.place.job,
        "MOCO_DIST_RESTART": str(start.place.restart),
    }


def _staged(start: Start) -> list[str]:
    """Unpack the data on this node, if they come in an archive. Returns the overrides that name their folder."""
    if not start.submission.stage:
        return []
    try:
        local_disk = configs.expanded("local_disk", start.profile.local_disk)  # by the node's own variables
        folder = stage.unpack(Path(start.submission.stage), Path(local_disk))
    except UserError as error:
        status.write(start.launch.run_dir, "user_error", start.launch.checkpoint_step(), str(error))
        start.say(str(error))
        raise SystemExit(status.EXIT_CODES["user_error"]) from None
    return [f"data.root={configs.literal(folder / start.data_root)}"]


def _end_after_signal(start: Start, stop: Stop) -> None:
    """Wait until SLURM ends this task, once the ranks have saved. Returns only if the run has ended for good."""
    stop.finished.wait()
    if start.ended():
        return
    if start.place.local:
        os._exit(_LOCAL_REQUEUE if stop.signal == signal.SIGUSR2 else status.EXIT_CODES["stopped"])
    while not start.requeue_mark.exists():
        time.sleep(1)
    raise SystemExit(status.EXIT_CODES["stopped"])


def _end(start: Start, state: status.State) -> dict[str, Any]:
    """End this start: a run that is done returns, a crashed one is requeued, another one fails."""
    last = start.launch.status()
    if state == "done":
        return {"state": state, "step": last.step}
    start.say(f"{state} at step {last.step}: {last.reason}")
    if state == "crashed" and start.profile.tasks == "node":
        _requeue_crashed(start)
    raise SystemExit(status.EXIT_CODES[state])


def _requeue_crashed(start: Start) -> None:
    """Requeue a crashed job, since other nodes may serve it better; the first task does it, the others wait."""
    if start.launch.stands_still(start.place.job):
        _give_up(start)
    if start.place.local:
        os._exit(_LOCAL_REQUEUE)
    deadline = time.monotonic() + _WAIT_FOR_FIRST_SECONDS
    granted = start.place.first and start.requeue()
    while granted or (time.monotonic() < deadline and not start.requeue_mark.exists()):
        time.sleep(1)


def _give_up(start: Start) -> NoReturn:
    """Write the note that the run makes no progress, and end the job for good."""
    last = start.launch.status()
    reason = f"no progress in {STARTS_WITHOUT_PROGRESS} starts from step {start.launch.checkpoint_step()}"
    if start.place.first:
        text = f"{reason}; the last: {last.reason}" if last.reason else reason
        status.write(start.launch.run_dir, "crashed", last.step, text)
        start.say(reason)
    raise SystemExit(1)
