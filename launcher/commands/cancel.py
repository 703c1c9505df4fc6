"""End runs; a running one saves first."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
from collections.abc import Sequence

from launcher import slurm
from launcher.record import Launch
from launcher.views import runs
from launcher.views.runs import Run
from moco_dist.run.lease import process_start

_LEAVE_SECONDS = 60.0  # twice SLURM's usual KillWait


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "run_dirs", nargs="+", metavar="RUN", help="run directories, names of runs in runs/, or ids of jobs"
    )
    parser.add_argument(
        "--wait-seconds",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long a running one may take to save (60)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    launches = chosen(options.run_dirs)
    found = runs.answered(launches)
    asked = [run.launch for run in found if run.live and not run.waits and _ask_to_save(run)]
    if asked:
        names = ", ".join(run.name for run in found if run.launch in asked)
        print(f"{names}: told to save; waiting for up to {options.wait_seconds:g} s", flush=True)
        runs.wait(asked, lambda run: _has_saved(run) or run.waits or not run.live, options.wait_seconds)
    before = {run.launch: run for run in found}
    now = runs.look(launches)
    for run in now:
        if run.live and run.job:
            _scancel(run)
    gone = runs.wait([run.launch for run in now if run.live], _has_left, _LEAVE_SECONDS)
    ends = {run.launch: run for run in [*now, *gone]}
    return max([_tell(before[launch], ends[launch]) for launch in launches])


def chosen(texts: Sequence[str]) -> list[Launch]:
    """The runs that are named, each once. Raises UserError, Unavailable."""
    return list(dict.fromkeys(launch for text in texts for launch in runs.find_all(text)))


def go_on(run: Run) -> str:
    """The command that goes on with a run that has ended."""
    return f"python -m launcher requeue {shlex.quote(run.name)}"


def checkpoint(run: Run) -> str:
    """What there is to go on from, in words."""
    step = run.launch.checkpoint_step()
    return f"saved at step {step}" if step else "no checkpoint yet"


def _ask_to_save(run: Run) -> bool:
    """Send TERM to what trains. Returns whether there is something to wait for."""
    if run.local:
        return _terminate(run)
    if run.job is None or run.word != "running":
        return False  # it has saved, or has not begun to train in this start
    try:
        slurm.signal(run.job.id, "TERM")
        return True
    except slurm.Refused:  # it has just ended
        return False


def _terminate(run: Run) -> bool:
    """Send TERM to a local job's controller, which passes it on."""
    sent = run.submission
    assert sent is not None
    if process_start(int(sent.job)) != sent.started:
        return False  # on another host
    os.kill(int(sent.job), signal.SIGTERM)
    return True


def _has_saved(run: Run) -> bool:
    """Whether it has saved; a local job then ends by itself, and is waited for."""
    return run.word in ("stopped", "done") and not run.local


def _scancel(run: Run) -> None:
    assert run.job is not None
    try:
        slurm.cancel(run.job.id)
    except slurm.Refused as error:  # it has ended meanwhile, or what follows says that it has not
        print(f"{run.name}: {error}", flush=True)


def _has_left(run: Run) -> bool:
    return not run.live or run.job is None


def _tell(before: Run, end: Run) -> int:
    """Say what became of a run. Returns the exit status."""
    job = before.submission.job if before.submission else ""
    if before.ended:
        print(f"{before.name}: has ended already: {before.state}")
        return 0
    if end.live:
        where = f"; {end.reason}" if end.reason else ""
        print(f"{end.name}: job {job} is still there{where}")
        return 1
    if end.silence:
        print(f"{end.name}: job {job} is told to end, but SLURM does not confirm it: {end.silence}")
        return 1
    if end.state == "done":
        print(f"{end.name}: job {job} was done before it was cancelled")
        return 0
    how = "cancelled before it started" if before.waits else "cancelled"
    print(f"{end.name}: job {job} {how}; {checkpoint(end)}; to go on: {go_on(end)}")
    return 0
