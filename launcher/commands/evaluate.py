"""Evaluate a run as a job of its own, once it is done.

python -m launcher evaluate RUN [--time-minutes 60, or another option of the job] [-- OPTIONS]

OPTIONS are those of python -m moco_dist.evaluate: -- --linear --labels 100. The job asks for one node of the run's
profile. While the run goes on, the job waits for it, and is cancelled if the run fails.
"""

import argparse

from launcher import job_ids, sending
from launcher.checks import evaluation
from launcher.options import add_resources, add_run, changed
from launcher.record import Launch
from launcher.views import find, runs
from moco_dist.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_run(parser)
    add_resources(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    sending.need_submitit()
    words = evaluation.checked(options.behind)
    launch = find.run(options.run_dir)
    dependency = _dependency(launch)
    last = launch.submission()
    assert last is not None
    if options.nodes and options.nodes[1] > 1:
        raise UserError.of("--nodes", options.nodes[1], "an evaluation runs on one node", "drop it")
    submission = changed(last, options)
    if submission.profile.slurm_cluster != last.profile.slurm_cluster and dependency:
        rule = "the run's job is on another cluster, where no job can wait for it"
        raise UserError.of("slurm_cluster", submission.profile.slurm_cluster, rule, "wait for its end")
    try:
        job = sending.send_evaluation(launch, submission, words, dependency)
    except OSError as error:
        raise UserError.of("RUN", options.run_dir, f"cannot be written: {error.strerror}", "mend it") from None
    print(f"evaluation: job {job}" + ", when the run is done" * bool(dependency))
    print(f"log: {launch.evaluation_log}")
    return 0


def _dependency(launch: Launch) -> str | None:
    """Write in sbatch's words what the evaluation of a run waits for; None where the run is done. Raises UserError."""
    [run] = runs.look_surely([launch])
    if run.state == "done":
        return None
    if run.ended:
        fix = f"python -m launcher requeue {run.name}, or python -m moco_dist.evaluate"
        raise UserError.of("RUN", run.name, f"the run has ended: {run.state}", fix)
    if run.local:
        raise UserError.of("RUN", run.name, "runs on this machine, and SLURM cannot wait for it", "wait for its end")
    return f"afterok:{job_ids.number(run.job_id)}"
