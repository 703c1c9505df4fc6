"""End runs; a running one saves first."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher import job_ids, slurm, slurm_jobs
from launcher.options import add_runs
from launcher.record import Launch
from launcher.views import find, runs
from moco_dist.errors import UserError
from moco_dist.run.lease import process_start

_LEAVE_SECONDS = 60.0  # twice SLURM's usual KillWait
_LOOK_SECONDS = 0.5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_runs(parser)
    text = "how long a running one may take to save (60)"
    parser.add_argument("--wait-seconds", type=float, default=60.0, metavar="SECONDS", help=text)


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    named, unrecorded = _named(options.run_dirs)
    launches = find.runs(named) if named else []
    before = {run.launch: run for run in runs.look_surely(launches)}
    unrecorded += _of_moved(named, list(before.values()))
    running = [run for run in before.values() if run.live and not run.waits]
    saving = [run for run in running if (_terminate(run) if run.local else run.ask_to_save("TERM"))]
    try:
        runs.wait_for_saving(saving, lambda run: _has_saved(run) or run.waits or run.ended, options.wait_seconds)
    except KeyboardInterrupt:
        if names := [run.name for run in saving if run.job]:
            again = f"python -m launcher cancel {shlex.join(names)}"
            print(f"launcher: told to save, and to keep the nodes until it is cancelled: {again}", file=sys.stderr)
        raise
    now = [before[run.launch] if run.slurm_error else run for run in runs.look(launches)]
    left = _end([run for run in now if run.live])
    after = {run.launch: run for run in [*now, *left]}
    codes = [_print_outcome(before[launch], after[launch]) for launch in launches]
    return max([*codes, *(_cancel_unrecorded(job, options.wait_seconds) for job in unrecorded)])


def _end(live: Sequence[runs.Run]) -> list[runs.Run]:
    """End the jobs of live runs, and wait until they have left. Returns how these runs stand then.

    A job that asks for its own requeue at this moment, after a crash or ahead of a preemption, comes back into the
    queue although it was cancelled; it is cancelled once more.
    """
    launches, running = [run.launch for run in live], {run.launch for run in live if not run.waits}

    def has_left(run: runs.Run) -> bool:
        return not run.slurm_error and (run.job is None or not run.live)

    def is_back(run: runs.Run) -> bool:
        return run.waits and run.launch in running

    _cancel(live)
    left = runs.wait(launches, lambda run: has_left(run) or is_back(run), _LEAVE_SECONDS)
    if back := [run for run in left if is_back(run)]:
        _cancel(back)
        left = runs.wait(launches, has_left, _LEAVE_SECONDS)
    return left


def _cancel(live: Sequence[runs.Run]) -> None:
    """Cancel the jobs of live runs, and print what SLURM says against it."""
    for run in live:
        if run.job:
            try:
                slurm_jobs.cancel(run.job.id)
            except slurm.Refused as error:  # it has ended meanwhile, or what follows says that it has not
                print(f"{run.name}: {error}", flush=True)


def _named(texts: Sequence[str]) -> tuple[list[str], list[slurm_jobs.Job]]:
    """Part what a person has named into runs, and live jobs that no run directory knows of. Raises UserError."""
    named, unrecorded = [], list[slurm_jobs.Job]()
    for text in texts:
        try:
            find.runs([text])
            named.append(text)
        except UserError:
            if not (jobs := runs.live_jobs_of(text)):
                raise
            unrecorded += jobs
    return named, unrecorded


def _of_moved(named: Sequence[str], before: Sequence[runs.Run]) -> list[slurm_jobs.Job]:
    """Find live jobs that were named by ids which records have, but of other directories: those were moved since."""
    lost = [run.submission.job for run in before if run.submission and run.job is None and not run.local]
    ids, own = {*lost, *map(job_ids.array, lost)}, {run.job.id for run in before if run.job}
    jobs = [job for text in named if text in ids for job in runs.live_jobs_of(text)]
    return [job for job in jobs if job.id not in own]


def _cancel_unrecorded(job: slurm_jobs.Job, wait_seconds: float) -> int:
    """End a job of which its run directory has no record; where there is a status, it saves before."""
    launch, deadline = Launch(Path(job.run_dir)), time.monotonic() + wait_seconds
    with contextlib.suppress(slurm.Refused):  # it has ended meanwhile
        if not (job.waits or job.suspended) and launch.status().state == "running":
            slurm_jobs.signal(job.id, "TERM")
            while launch.status().state == "running" and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
        slurm_jobs.cancel(job.id)
    deadline = time.monotonic() + _LEAVE_SECONDS
    while (left := slurm_jobs.queue([job.id]).get(job.id)) and left.live and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    is_there = left is not None and left.live
    outcome = "is still there" if is_there else f"cancelled; {job.run_dir} has no record of it"
    print(f"job {job.id}: {outcome}")
    return int(is_there)


def _terminate(run: runs.Run) -> bool:
    """Send TERM to a local job's controller, which passes it on. Returns whether it is on this host."""
    submission = run.submission
    assert submission is not None
    if process_start(int(submission.job)) != submission.started:
        return False
    os.kill(int(submission.job), signal.SIGTERM)
    return True


def _has_saved(run: runs.Run) -> bool:
    """Return whether a run has saved; a local job then ends by itself, and is waited for."""
    return run.trainer_state in ("stopped", "done") and not run.local


def _print_outcome(before: runs.Run, after: runs.Run) -> int:
    """Print what became of a run. Returns the exit status."""
    job = before.submission.job if before.submission else ""
    exit_status = 0
    if before.ended:
        outcome = f"has ended already: {before.state}" + f"; {before.reason}" * (before.state == "lost")
    elif after.live:
        outcome, exit_status = f"job {job} is still there" + (f"; {after.reason}" if after.reason else ""), 1
    elif after.slurm_error:
        outcome, exit_status = f"job {job} is told to end, but SLURM does not confirm it: {after.slurm_error}", 1
    elif after.state == "done":
        outcome = f"job {job} was done before it was cancelled"
    else:
        how = "cancelled before it started" if before.waits else "cancelled"
        go_on = f"python -m launcher requeue {shlex.quote(after.name)}"
        outcome = f"job {job} {how}; {after.saved}; to go on: {go_on}"
    print(f"{after.name}: {outcome}")
    return exit_status
