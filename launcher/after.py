"""See to a job whose srun has failed: put it back into the queue, or send another job for its run.

python -m launcher.after FOLDER STATUS

The batch script calls it with the exit status of srun. SLURM requeues a job when it finds a node dead. One that is up
again sooner has lost its part of the step all the same: srun ends, and the job with it, as failed. A job in a container
finds no scontrol to requeue itself by; a controller may be away for a while; and a site may forbid requeues.
"""

import contextlib
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from shutil import which

from launcher import job_ids, sending, slurm, slurm_jobs
from launcher.job import bad_nodes, failure, notify
from launcher.record import SENT_AGAIN, Launch, run_dirs
from launcher.views import moments

_PAUSES_SECONDS = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Pauses between two requests; the last one again and again."""
_REFUSALS = 10
"""SLURM may refuse both a requeue and a new job this many times."""
_TOLD = (128 + signal.SIGUSR2, 128 + signal.SIGTERM)
"""Exit status of a task that was told to save, or to end, before it could listen."""


def job_of_script() -> str:
    """Return the id of the job that this batch script is of: `12`, or `12_3` for a member of an array."""
    array, member = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{member}" if array else os.environ["SLURM_JOB_ID"]


def launch_of(folder: Path, job: str) -> Launch | None:
    """Find the run of a job: the folder itself, or in a sweep's folder one right inside it."""
    launches = [Launch(run_dir) for run_dir in run_dirs(folder)]
    return next((one for one in launches if (sent := one.submission()) and job_ids.number(sent.job) == job), None)


def goes_on(launch: Launch, job: str, restart: int) -> bool:
    """Return whether the run has not ended, so that another start may help."""
    submission, status = launch.submission(), launch.status()
    state = None if status.reason == SENT_AGAIN else status.state
    if submission is None or launch.stands_still(job):  # the task has given it up already
        return False
    if launch.requeue_mark(job, restart).exists():
        return state != "done"
    return submission.profile.tasks == "node" and state in ("running", "crashed", None)


def is_ending(job: str) -> bool:
    """Return whether SLURM ends or requeues the job by itself; False where SLURM is silent."""
    try:
        queued = slurm_jobs.queue([job]).get(job)
    except slurm.Unavailable:
        return False
    return queued is None or queued.state != "RUNNING"


def start_again(launch: Launch, job: str) -> bool:
    """Requeue a job as soon as SLURM answers; where it refuses, send another job. Returns whether the run goes on."""
    said, refusals, at_fault = "", 0, bad_nodes.repeated(launch)
    for pause in itertools.chain(_PAUSES_SECONDS, itertools.repeat(_PAUSES_SECONDS[-1])):
        if is_ending(job):  # it was cancelled meanwhile, and SLURM would bring it back
            return False
        try:
            slurm_jobs.requeue(job)
            launch.say(f"job {job} is requeued")
            bad_nodes.leave_out(launch, job, at_fault)
            return True
        except slurm.Unavailable as error:
            trouble = f"job {job} cannot be requeued now ({error})"
        except slurm.Refused as error:
            if is_ending(job):
                return False
            trouble, refusals = f"SLURM does not requeue job {job} ({error})", refusals + 1
            if new := _send_successor(launch, trouble):
                return new
        if refusals >= _REFUSALS or not which("scontrol"):
            break
        if trouble != said:
            launch.say(f"{trouble}; tried again, as long as the allocation lasts")
            said = trouble
        time.sleep(pause)
    launch.say(f"{trouble}; the run goes on with: {launch.requeue_command}")
    return False


def _send_successor(launch: Launch, trouble: str) -> bool:
    """Send another job for the run, which starts when this one has ended. Returns whether SLURM took it."""
    try:
        new = sending.send_successor(launch).job
    except (slurm.Refused, slurm.Unavailable) as error:
        launch.say(f"a new job is refused too ({error})")
        return False
    launch.say(f"{trouble}; job {new} goes on with the run")
    return True


def _note(launch: Launch, job: str, restart: int, exit_status: int) -> str:
    """Note that a start has failed, and return why.

    One that was told to save before it could listen has failed only where its time was over; the reason is empty.
    """
    if exit_status not in _TOLD:
        reason = launch.status().reason or f"srun ended with exit status {exit_status}"
        failure.note(launch, job, restart, reason)
        return reason
    start, submission = launch.start(job, restart), launch.submission()
    began = float(start.get("time", 0)) if start else _began(job)
    if submission and began and failure.is_time_limit(submission.profile, began):
        failure.note_time_limit(launch, job, restart)
    return ""


def _began(job: str) -> float | None:
    """Return when SLURM has started the job, in seconds since the epoch; None where it does not tell."""
    with contextlib.suppress(slurm.Unavailable):
        if queued := slurm_jobs.queue([job]).get(job):
            return moments.of_text(queued.started)
    return None


def main() -> int:
    """See to the job of this batch script. Returns the exit status: 0 where its run goes on, else 1."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a requeue ends this process, which is to tell of it
    number = job_of_script()
    folder, exit_status = Path(sys.argv[1]), int(sys.argv[2])
    launch, restart = launch_of(folder, number), int(os.environ.get("SLURM_RESTART_COUNT", 0))
    submission = launch.submission() if launch else None
    job = submission.job if submission else number
    if launch is None or not goes_on(launch, job, restart) or is_ending(job):
        return 1
    launch.add_end(job=job, restart=restart)
    if not launch.requeue_mark(job, restart).exists():
        reason = _note(launch, job, restart, exit_status)
        if launch.stands_still(job):
            launch.say(launch.give_up())
            notify.tell(launch, job, "failure", "end", last=True)
            return 1
        if reason:
            notify.tell(launch, job, "failure", reason=reason, last=True)
    if start_again(launch, job):
        return 0
    notify.tell(launch, job, "failure", "end", reason="it could not be started again", last=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
