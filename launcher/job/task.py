"""Run a task of the job, one a node: it starts this node's ranks, restarts them, and heeds SLURM's signals.

Every way of stopping is one way: the ranks save and write status.json, and the next start, here or after a requeue,
goes on from the run directory. Nothing is kept in submitit's pickles.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.job import failure, node_check, notify, stage
from launcher.job.start import Start, rank_processes, run_ranks
from launcher.record import Submission, refuse_others
from moco_dist import config as configs
from moco_dist.errors import UserError
from moco_dist.run import status

_WAIT_FOR_FIRST_SECONDS = 120.0
_ROWS_SECONDS = 2.0
_LOCAL_REQUEUE = 144  # what submitit's local controller starts a task again for


@dataclass(frozen=True)
class Task:
    """The callable that submitit pickles, and runs once a task at every start of the job."""

    run_dir: str
    submission: Submission
    data_root: str = ""
    """The place of the root in the archive of the data; empty without an archive."""

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
    start.end_if_replaced()
    stop = Stop(start)
    os.environ.update(start.environment())
    if start.restart and (state := start.ended()):
        return _end(start, state)
    if start.first:
        _begin(start)
    if start.profile.check_nodes and start.local_task == 0 and not start.local:
        _check_node(start)
    overrides = _staged(start)
    attempt = 0
    while stop.signal is None:
        stop.is_in_ranks = True
        completed = run_ranks(start, overrides, attempt)
        stop.is_in_ranks = False
        if stop.signal or not completed or start.launch.status().state != "stopped":
            break
        attempt += 1  # the agents themselves had stopped the ranks, for a node that came late
    if stop.signal:
        _end_after_signal(start, stop)
    return _end(start, start.ended() or "crashed")


def _begin(start: Start) -> None:
    """Note that the job has started, and how the start before has ended, if that one could not."""
    step, nodes = start.launch.checkpoint_step(), list(start.hostnames)
    before = start.launch.starts()[-1:]
    place = {"nodes": nodes, "gpus": len(nodes) * start.profile.gpus_per_node}
    start.launch.add_start(job=start.job, restart=start.restart, step=step, time=start.began, **place)
    start.say(f"job {start.job}, start {start.restart}, from step {step} on {', '.join(nodes)}")
    if before and not start.local:
        failure.note_unfinished(start.launch, before[0])
    if not start.launch.has_rows():
        threading.Thread(target=_tell_of_first_step, args=(start,), daemon=True).start()


def _check_node(start: Start) -> None:
    """Check this node; one that is not fit for the run ends this start, and the job is requeued."""
    try:
        start.say(f"checked: {node_check.check(start.launch, start.profile, start.hostnames[start.node])}")
    except node_check.BadNode as error:
        node_check.end_unfit(start, str(error))


def _tell_of_first_step(start: Start) -> None:
    """Wait for the run's first figures, and tell of them."""
    while not start.launch.has_rows():
        time.sleep(_ROWS_SECONDS)
    notify.tell(start.launch, start.job, "first_step")


def _staged(start: Start) -> list[str]:
    """Unpack the data on this node, if they come in an archive. Returns the overrides that name their folder."""
    if not start.submission.stage:
        return []
    try:
        local_disk = configs.expanded("local_disk", start.profile.local_disk)  # by the node's own variables
        start.say(f"unpacks {start.submission.stage}")
        folder = stage.unpack(Path(start.submission.stage), Path(local_disk))
        start.say("has the data")
    except UserError as error:
        if isinstance(error, stage.NodeTrouble) and not start.local:
            node_check.end_unfit(start, str(error))
        status.write(start.launch.run_dir, "user_error", start.launch.checkpoint_step(), str(error))
        start.say(str(error))
        raise SystemExit(status.EXIT_CODES["user_error"]) from None
    return [f"data.root={configs.literal(folder / start.data_root)}"]


def _end_after_signal(start: Start, stop: Stop) -> None:
    """Wait until nothing depends on this task, once the ranks have saved. Returns only if the run has ended for good.

    A task that ended while the job might still be asked to go would let it count as failed.
    """
    stop.finished.wait()
    if start.ended():
        return
    if start.launch.stands_still(start.job):
        raise SystemExit(1)
    if start.local:
        os._exit(_LOCAL_REQUEUE if stop.signal == signal.SIGUSR2 else status.EXIT_CODES["stopped"])
    # The first task may have ended before it could listen, and with it the hope of a requeue or a mark.
    patience_seconds = start.profile.signal_seconds if stop.signal == signal.SIGUSR2 and not start.first else math.inf
    deadline = time.monotonic() + patience_seconds
    while not start.requeue_mark.exists() and time.monotonic() < deadline:
        time.sleep(1)
    raise SystemExit(status.EXIT_CODES["stopped"])


def _end(start: Start, state: status.State) -> dict[str, Any]:
    """End this start: a run that is done returns, a crashed one is requeued, another one fails."""
    last = start.launch.status()
    if start.first:
        is_noted_later = state == "crashed" and start.profile.tasks == "node"  # with the nodes at fault
        reason = None if is_noted_later else ": ".join(filter(None, [state, last.reason]))
        start.launch.add_end(job=start.job, restart=start.restart, reason=reason)
    if state == "done":
        start.tell_of_end()
        return {"state": state, "step": last.step}
    start.say(f"{state} at step {last.step}: {last.reason}")
    if state == "crashed" and start.profile.tasks == "node":
        _requeue_crashed(start)
    start.tell_of_end()
    raise SystemExit(status.EXIT_CODES[state])


def _requeue_crashed(start: Start) -> None:
    """Requeue a crashed job, since other nodes may serve it better; the first task does it, the others wait."""
    if start.first:
        failure.note(start.launch, start.job, start.restart, start.launch.status().reason)
        if start.launch.stands_still(start.job):
            start.say(start.launch.give_up())
            start.tell_of_end()
            raise SystemExit(1)
        notify.tell(start.launch, start.job, "failure", last=True)
    if start.local:
        os._exit(_LOCAL_REQUEUE)
    deadline = time.monotonic() + _WAIT_FOR_FIRST_SECONDS
    if start.first and start.requeue():
        raise SystemExit(status.EXIT_CODES["crashed"])  # SLURM ends the others
    while time.monotonic() < deadline and not start.requeue_mark.exists():
        if start.launch.stands_still(start.job):
            raise SystemExit(1)
        time.sleep(1)


class Stop:
    """Heed SLURM's signals. The handlers do nothing; a thread reads what arrived and acts beside the main thread.

    USR2, ahead of a time limit or a preemption: the ranks save, then the job asks to be requeued. TERM, from scancel,
    an outside requeue, or a preemption without USR2: the ranks save, and the task stays alive until SLURM ends it,
    since a job that ends on TERM counts as failed and is not requeued.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self.signal: signal.Signals | None = None
        """The first signal that has arrived; None before it."""
        self.is_in_ranks = False
        """True while the main thread runs the ranks, or waits for those of other nodes."""
        self.finished = threading.Event()
        """Set when what the signal asks for is done."""
        self._requeued = False
        """This says whether the run goes on without this task: by another start of the job, or by another job."""
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._serve, name="stop", daemon=True).start()

    def _serve(self) -> None:
        """Wait for the first signal; end this task if another node's task ends the run while this one waits for it."""
        heeded = {int(signal.SIGUSR2), int(signal.SIGTERM)}
        while self.signal is None:
            ready, _, _ = select.select([self._reader], [], [], 5.0)
            numbers = heeded & set(os.read(self._reader, 64)) if ready else set()
            if not ready and len(self._start.hostnames) > 1 and not rank_processes():
                self._end_with_others()
            if numbers:
                self._stop(signal.SIGUSR2 if signal.SIGUSR2 in numbers else signal.SIGTERM)
        if self.signal == signal.SIGUSR2 and not self._start.local:
            self._end_with_the_job()

    def _end_with_others(self) -> None:
        """End this task, whose main thread waits for a node that has ended the run for good, or wants another start."""
        start, state = self._start, self._start.ended()
        if self.is_in_ranks and (start.launch.stands_still(start.job) or start.requeue_mark.exists()):
            os._exit(1)
        if state in ("user_error", "diverged"):
            self._start.say(f"another node has ended the run: {state}")
            self._start.tell_of_end()
            os._exit(status.EXIT_CODES[state])

    def _end_with_the_job(self) -> None:
        """End this task when SLURM starts the job again, so that no node is idle for KillWait, or when it is given up.

        So it ends where another job goes on with the run. The first task knows that SLURM has agreed; the others get
        TERM, since SLURM then ends the job. The main thread may wait for ranks that hang, or for the agents of other
        nodes.
        """
        while not self._requeued:
            ready, _, _ = select.select([self._reader], [], [], 2.0)
            self._requeued = bool(ready) and signal.SIGTERM in os.read(self._reader, 64)
            self._requeued = self._requeued or self._start.is_replaced
            if not self._requeued and self._start.launch.stands_still(self._start.job):
                for pid in rank_processes():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                os._exit(1)
        while rank_processes():
            time.sleep(0.1)
        os._exit(status.EXIT_CODES["stopped"])

    def _stop(self, number: signal.Signals) -> None:
        """Have the ranks save, and after USR2 requeue the job. Further signals change nothing."""
        start, self.signal = self._start, number
        start.told_to_end = number == signal.SIGTERM
        start.say(f"{number.name}: the ranks are told to save")
        with contextlib.suppress(OSError):
            start.stop_mark.touch()
        deadline = time.monotonic() + start.profile.signal_seconds - 10
        while (pids := rank_processes()) and time.monotonic() < deadline:
            for pid in pids:  # again and again: a rank that has just started would miss a single signal
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR2)
            time.sleep(0.5)
            if start.launch.status().state != "running":
                break
        if start.first:
            last = start.launch.status()
            start.say(f"{last.state or 'nothing was begun'} at step {last.step}")
            what = f"{number.name}: told to save, {last.state or 'not begun'} at step {last.step}"
            is_end = start.launch.add_end(job=start.job, restart=start.restart, reason=what)
            is_preemption = not failure.is_time_limit(start.profile, start.began)
            if is_end and is_preemption:  # else it had failed before, and was requeued for that
                notify.tell(start.launch, start.job, "preemption", reason=f"{number.name}: told to save")
            if number == signal.SIGUSR2 and last.state != "done" and not self._gives_up():
                self._requeued = start.requeue()
        self.finished.set()

    def _gives_up(self) -> bool:
        """Return whether another start would be in vain, since the time limit ends each before it gets any further."""
        start = self._start
        if start.ended() or not failure.is_time_limit(start.profile, start.began):
            return False
        with contextlib.suppress(OSError):
            failure.note_time_limit(start.launch, start.job, start.restart)
        if not start.launch.stands_still(start.job):
            return False
        start.say(start.launch.give_up())
        return True
