"""Keep as many of the nodes that SLURM gave a job as its run can be laid on, and release the others at once.

python -m launcher.resize FOLDER

The batch script of a job with `--nodes 1-4` calls it ahead of srun, at every start. It prints how many nodes are kept
and their list in SLURM's words: `2 n[1-2]`. Exit status 2 where no number of nodes fits.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from launcher import elastic, slurm, slurm_jobs
from launcher.after import job_of_script, launch_of
from launcher.nodes import hostnames
from launcher.record import Launch, Submission
from moco_dist.errors import UserError
from moco_dist.run import status


def kept(launch: Launch, submission: Submission, allocated: int) -> int:
    """Return how many of the allocated nodes the run can use. Raises UserError where it can use none."""
    fitting = [nodes for nodes in elastic.sizes(launch.config(), submission) if nodes <= allocated]
    if not fitting:
        rule = f"batch and BatchNorm groups do not divide by the ranks of {allocated} nodes or fewer"
        raise UserError.of("--nodes", f"{submission.least_nodes}-{submission.nodes}", rule, "choose other nodes")
    return fitting[-1]


def release(launch: Launch, job: str, allocated: int, nodes: int) -> str:
    """Give all but so many nodes back to SLURM, at once. Returns the list of those that are left, in SLURM's words.

    Raises:
        Refused, Unavailable: SLURM keeps the job at its size.
    """
    # scontrol leaves scripts where it runs.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        number, *_ = slurm_jobs.raw_words(job)
        slurm.call("scontrol", "update", f"JobId={number}", f"NumNodes={nodes}")
    left = slurm_jobs.queue([job])[job].nodes
    launch.say(f"job {job} keeps {nodes} of {allocated} nodes, which its batch divides into, and releases the others")
    return left


def main() -> int:
    """Size the job of this batch script, and print its nodes. Returns the exit status."""
    job, folder = job_of_script(), Path(sys.argv[1])
    allocated, nodes = int(os.environ["SLURM_JOB_NUM_NODES"]), os.environ["SLURM_JOB_NODELIST"]
    launch = launch_of(folder, job)
    if launch is None or (submission := launch.submission()) is None:
        print(f"launcher: {folder}: has no record of job {job}", file=sys.stderr)
        return status.EXIT_CODES["user_error"]
    try:
        count = kept(launch, submission, allocated)
    except UserError as error:
        status.write(launch.run_dir, "user_error", launch.checkpoint_step(), str(error))
        launch.say(str(error))
        return status.EXIT_CODES["user_error"]
    if count < allocated:
        try:
            nodes = release(launch, job, allocated, count)
        except (slurm.Refused, slurm.Unavailable) as error:
            launch.say(f"{allocated - count} of {allocated} nodes stay idle, since SLURM does not take them ({error})")
            nodes = ",".join(hostnames([nodes])[:count])
    print(count, nodes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
