"""Tell the batch script whether to put the job back into the queue, after srun has failed.

job=$(python -m launcher.job.after FOLDER) && scontrol requeue "$job"

SLURM requeues a job when it finds a node dead. One that is up again sooner has lost its part of the step all the same:
srun ends, and the job with it, as failed. And a job in a container finds no scontrol to requeue itself by.
"""

import os
import sys
from pathlib import Path

from launcher import slurm
from launcher.record import STARTS_WITHOUT_PROGRESS, Launch, run_dirs


def launch_of(folder: Path, job: str) -> Launch | None:
    """Find the run of a job: the folder itself, or in a sweep's folder one right inside it."""
    launches = [Launch(run_dir) for run_dir in run_dirs(folder)]
    return next((launch for launch in launches if (sent := launch.submission()) and sent.job == job), None)


def goes_on(launch: Launch, job: str, restart: int) -> bool:
    """Return whether the run has not ended, and another start may help."""
    submission = launch.submission()
    unnoted = restart + 1 - sum(start["job"] == job for start in launch.starts())
    if submission is None or launch.stands_still(job) or unnoted >= STARTS_WITHOUT_PROGRESS:
        return False
    state = launch.status().state
    if launch.requeue_mark(job, restart).exists():
        return state != "done"
    return submission.profile.tasks == "node" and state in ("running", "crashed", None)


def cancelled(job: str) -> bool:
    """Return whether SLURM is ending the job, which a requeue would bring back; False where SLURM is silent."""
    try:
        queued = slurm.queue([job]).get(job)
    except slurm.Unavailable:
        return False
    return queued is None or queued.state != "RUNNING"


def main() -> int:
    """Print the job's id where it is to be requeued. Returns the exit status: 1 where it is not."""
    array, member = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{member}" if array else os.environ["SLURM_JOB_ID"]
    launch = launch_of(Path(sys.argv[1]), job)
    restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if launch is None or not goes_on(launch, job, restart) or cancelled(job):
        return 1
    print("srun has failed, the run has not ended: requeued", file=sys.stderr)
    print(job)
    return 0


if __name__ == "__main__":
    sys.exit(main())
