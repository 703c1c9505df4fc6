"""Put running runs back into the queue, and send ended ones again."""

import argparse
import sys

from launcher import sending, slurm
from launcher.options import add_runs
from launcher.views import find, runs
from moco_dist.errors import UserError

_REQUEUE_SECONDS = 30.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_runs(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    before = runs.look_surely(find.runs(options.run_dirs))
    # One that is completing trains no more, but its nodes are not free yet.
    running = [run for run in before if run.live and run.job and not run.waits and run.job.state != "COMPLETING"]
    codes = [_send_again(run) if run.ended else _print_why_not(run) for run in before if run not in running]
    saving = [run for run in running if run.ask_to_save("USR2")]
    seconds = max([run.submission.profile.signal_seconds for run in saving if run.submission], default=0)
    runs.wait_for_saving(saving, lambda run: _is_back(run, before), seconds)
    return max([*codes, *(_requeue(run) for run in running)])


def _print_why_not(run: runs.Run) -> int:
    """Print why a run that has not ended is left as it is. Returns the exit status."""
    if run.waits:
        print(f"{run.name}: waits in the queue already ({run.reason})")
        return 0
    where = "runs on this machine, not in SLURM's queue" if run.local else run.reason
    print(f"{run.name}: {where}; it can be sent again when it has ended")
    return 1


def _send_again(run: runs.Run) -> int:
    """Submit a run that has ended as it was submitted last. Returns the exit status."""
    if run.state == "done":
        print(f"{run.name}: is done, there is nothing to do")
        return 0
    try:
        submission = sending.send_again(run.launch)
    except UserError as error:  # the other runs are not to wait for this one
        print(f"launcher: {run.name}: {error}", file=sys.stderr)
        return 2
    print(f"{run.name}: was {run.state}, {run.saved}; sent again as job {submission.job}")
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
            slurm.requeue(now.job.id)
        except slurm.Refused as error:
            print(f"launcher: {now.name}: {error}", file=sys.stderr)
        [now] = runs.wait([now.launch], lambda run: _is_back(run, [before]), _REQUEUE_SECONDS)
    if now.ended:
        print(f"{now.name}: has ended meanwhile: {now.state}")
        return 0 if now.state == "done" else 1
    if now.slurm_error or not _is_back(now, [before]):
        print(f"{now.name}: {now.slurm_error or 'is still running'}")
        return 1
    print(f"{now.name}: job {now.job.id if now.job else ''} is {now.state} again, {now.saved}")
    return 0
