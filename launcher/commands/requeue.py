"""Put running runs back into the queue, and send ended ones again."""

from __future__ import annotations

import argparse
import sys

from launcher import slurm
from launcher.commands import submit
from launcher.commands.cancel import checkpoint, chosen
from launcher.views import runs
from launcher.views.runs import Run
from moco_dist.errors import UserError

_REQUEUE_SECONDS = 30.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "run_dirs", nargs="+", metavar="RUN", help="run directories, names of runs in runs/, or ids of jobs"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    found = runs.answered(chosen(options.run_dirs))
    codes = [_send_again(run) if run.ended else _stays(run) for run in found if run.ended or not _can_requeue(run)]
    running = [run for run in found if not run.ended and _can_requeue(run)]
    asked = [run for run in running if _ask_to_save(run)]
    if asked:
        seconds = max(run.submission.profile.signal_seconds for run in asked if run.submission)
        print(f"{', '.join(run.name for run in asked)}: told to save; waiting for up to {seconds} s", flush=True)
        runs.wait([run.launch for run in asked], lambda run: _is_back(run, found), seconds)
    return max([*codes, *(_see_through(run) for run in running)])


def _can_requeue(run: Run) -> bool:
    return run.live and not run.waits and not run.leaves and run.job is not None


def _stays(run: Run) -> int:
    """Say why a run that has not ended is left as it is. Returns the exit status."""
    if run.waits:
        print(f"{run.name}: waits in the queue already ({run.reason})")
        return 0
    where = "runs on this machine, not in SLURM's queue" if run.local else run.reason
    print(f"{run.name}: {where}; it can be sent again when it has ended")
    return 1


def _send_again(run: Run) -> int:
    """Submit a run that has ended as it was submitted last. Returns the exit status."""
    if run.state == "done":
        print(f"{run.name}: is done, there is nothing to do")
        return 0
    try:
        sent = submit.again(run.launch)
    except UserError as error:  # the other runs are not to wait for this one
        print(f"launcher: {run.name}: {error}", file=sys.stderr)
        return 2
    print(f"{run.name}: was {run.state}, {checkpoint(run)}; sent again as job {sent.job}")
    return 0


def _ask_to_save(run: Run) -> bool:
    """Send USR2 to what trains: it saves and requeues itself. Returns whether that can be waited for."""
    assert run.job is not None
    if run.word != "running":
        return False  # it has not begun to train in this start
    try:
        slurm.signal(run.job.id, "USR2")
        return True
    except slurm.Refused:  # it has just ended
        return False


def _is_back(run: Run, before: list[Run]) -> bool:
    """Whether a run waits again, has started again, or has ended."""
    starts = next(b.starts for b in before if b.launch == run.launch)
    return run.waits or run.ended or run.starts > starts


def _see_through(before: Run) -> int:
    """Requeue a run that has not done so itself, and say how it stands. Returns the exit status."""
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
    if now.silence or not _is_back(now, [before]):
        print(f"{now.name}: {now.silence or 'is still running'}")
        return 1
    print(f"{now.name}: job {now.job.id if now.job else ''} is {now.state} again, {checkpoint(now)}")
    return 0
