"""Put running runs back into the queue, and send ended ones again; with options, as a new job that asks for them.

A run goes on with the copy of the code that it was sent with, unless --fresh-code takes the checkout's. One that was
sent with --after still waits for what it has waited for, unless that has failed.
"""

import argparse
import functools
import time
from collections.abc import Callable
from contextlib import suppress

from launcher import sending, slurm, slurm_jobs
from launcher.options import add_fresh_code, add_resources, add_runs, any_resources, changed
from launcher.record import Submission
from launcher.views import find, runs

_REQUEUE_SECONDS = 30.0
_LOOK_SECONDS = 0.5

_Send = Callable[..., tuple[Submission | None, int]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_runs(parser)
    add_resources(parser)
    add_fresh_code(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    before = runs.look_surely(find.runs(options.run_dirs))
    send = functools.partial(
        sending.try_again, change=functools.partial(changed, options=options), fresh_code=options.fresh_code
    )
    is_new = any_resources(options) or options.fresh_code
    # One that is completing trains no more, but its nodes are not free yet; one that is suspended could not save.
    live = [r for r in before if r.live and r.job and not (r.job.suspended or r.job.state == "COMPLETING")]
    replaced = [run for run in live if is_new or not (run.waits or _may_requeue(run))]
    running = [run for run in live if run not in replaced and not run.waits]
    rest = [run for run in before if run not in replaced and run not in running]
    codes = [_send_again(run, send) if run.ended else _print_why_not(run) for run in rest]
    saving = [run for run in running if run.ask_to_save("USR2")]
    seconds = max([run.submission.profile.signal_seconds for run in saving if run.submission], default=0)
    runs.wait_for_saving(saving, lambda run: _is_back(run, before), seconds)
    codes += [_requeue(run) for run in running]
    return max([*codes, *(_replace(run, send) for run in replaced)])


def _may_requeue(run: runs.Run) -> bool:
    """Return whether SLURM would requeue the run's job. Raises slurm.Unavailable."""
    assert run.job is not None
    try:
        return slurm_jobs.may_requeue(run.job.id)
    except slurm.Refused:  # it has just ended
        return True


def _print_why_not(run: runs.Run) -> int:
    """Print why a run that has not ended is left as it is. Returns the exit status."""
    if run.waits:
        print(f"{run.name}: waits in the queue already ({run.reason})")
        return 0
    where = "runs on this machine, not in SLURM's queue" if run.local else run.reason
    print(f"{run.name}: {where}; it can be sent again when it has ended")
    return 1


def _send_again(run: runs.Run, send: _Send) -> int:
    """Submit a run that has ended as it was last, but for what the options change. Returns the exit status."""
    if run.state == "done":
        print(f"{run.name}: is done, there is nothing to do")
        return 0
    submission, exit_status = send(run.name, run.launch)
    if submission:
        code = sending.code_in_words(run.submission, submission)
        waits = f", after job {submission.after.partition(':')[2]}" if submission.after else ""
        print(f"{run.name}: was {run.state}, {run.saved}; sent again as job {submission.job}{waits}, {code}")
    return exit_status


def _replace(run: runs.Run, send: _Send) -> int:
    """Send a new job for a live run, and only then end its job, which saves before. Returns the exit status."""
    assert run.job is not None and run.submission is not None
    submission, exit_status = send(run.name, run.launch, replaces=True)
    if submission is None:
        print(f"{run.name}: job {run.job.id} is left as it was")
        return exit_status
    code = sending.code_in_words(run.submission, submission)
    print(f"{run.name}: job {submission.job} takes over from job {run.job.id}, {code}", flush=True)
    if not run.waits and run.ask_to_save("USR2"):
        deadline = time.monotonic() + run.submission.profile.signal_seconds
        while run.launch.status().state == "running" and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
    with suppress(slurm.Refused):  # it has ended by itself
        slurm_jobs.cancel(run.job.id)
    print(f"{run.name}: job {run.job.id} is told to end, {run.saved}")
    return 0


def _is_back(run: runs.Run, before: list[runs.Run]) -> bool:
    """Return whether a run waits again, has started again, or has ended."""
    starts = next(earlier.evidence.starts for earlier in before if earlier.launch == run.launch)
    return run.waits or run.ended or run.evidence.starts > starts


def _requeue(before: runs.Run) -> int:
    """Requeue a run that has not done so itself, and print how it stands. Returns the exit status."""
    [now] = runs.look([before.launch])
    if now.live and now.job and not _is_back(now, [before]):
        try:
            slurm_jobs.requeue(now.job.id)
        except slurm.Refused as error:
            print(f"{now.name}: {error}", flush=True)
        [now] = runs.wait([now.launch], lambda run: _is_back(run, [before]), _REQUEUE_SECONDS)
    if now.ended:
        print(f"{now.name}: has ended meanwhile: {now.state}")
        return 0 if now.state == "done" else 1
    if now.slurm_error or not _is_back(now, [before]):
        print(f"{now.name}: {now.slurm_error or 'is still running'}")
        return 1
    print(f"{now.name}: job {now.job.id if now.job else ''} is {now.state} again, {now.saved}")
    return 0
