"""Send a run to SLURM, or with --local to this machine."""

import argparse
import os
import shlex
import sys

from launcher import elastic, sending, snapshot
from launcher.checks import after, evaluation
from launcher.options import add_job_options, add_waits, submission_of
from launcher.record import Launch, Submission
from launcher.views.follow import follow
from moco_dist import config as configs
from moco_dist.errors import UserError, masked
from moco_dist.run.directory import load_config


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_job_options(parser)
    add_waits(parser)
    text = "then evaluate the run as a job of its own: evaluate, or 'evaluate --linear --labels 100'"
    parser.add_argument("--then", metavar="WORDS", help=text)
    parser.add_argument("--job-name", metavar="NAME", help="name of the job; unset, run.name")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch text and the config, send nothing")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    sending.need_submitit()
    if options.after and options.local:
        raise UserError.of("--after", options.after, "--local starts at once and waits for nothing", "drop one of them")
    submission = submission_of(options)
    loaded = load_config(*configs.parse_arguments(options.words))
    config = sending.absolute(loaded, staged=submission.stage is not None)
    name = _job_name(options.job_name) if options.job_name else config.run.name[:200]
    dependency = after.dependency(options.after, submission.profile.slurm_cluster) if options.after else None
    then = evaluation.words_of(options.then, local=options.local) if options.then is not None else None
    changes = {"name": name, "after": dependency, "then": then}
    submission = elastic.narrowed(config, submission.model_copy(update=changes))
    ready, launch = sending.checked(config, submission), Launch(config.run_dir)
    if options.dry_run:
        _print_dry(launch, config, submission)
    if options.dry_run or not ready:
        return 0 if ready else 2
    submission = sending.send(config, submission)
    _announce(launch, config, submission)
    return follow([launch]) if options.wait else 0


def _print_dry(launch: Launch, config: configs.Config, submission: Submission) -> None:
    """Print what would be sent."""
    from launcher.executors import Sbatch

    submission = submission.model_copy(update={"code": snapshot.digest()})
    text = Sbatch(launch, submission, submission.after).text()
    sys.stdout.write(f"{text}\n\n# the config, {launch.config_file}\n{configs.dump(config)}")


def _announce(launch: Launch, config: configs.Config, submission: Submission) -> None:
    """Print where the job and its logs are."""
    command = f"python -m launcher logs -f {shlex.quote(str(launch.run_dir))}"
    print(f"{'process' if submission.executor == 'local' else 'job'}: {submission.job}")
    print(f"run directory: {launch.run_dir}")
    print(f"log: {launch.log(0)} ({command})")
    if config.track.wandb != "disabled":
        print(f"W&B: {masked(_wandb_place(launch, config))}")


def _wandb_place(launch: Launch, config: configs.Config) -> str:
    """Return the place where the run is found at W&B."""
    from moco_dist.tracking.wandb_files import fixed_id  # its package is slow to import

    run_id = fixed_id(launch.paths.wandb)
    if config.track.wandb == "offline":
        return f"offline; send it with: wandb sync {shlex.quote(str(launch.run_dir / 'wandb'))}/offline-run-*"
    server = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").replace("https://api.", "https://").rstrip("/")
    if entity := os.environ.get("WANDB_ENTITY"):
        return f"{server}/{entity}/{config.track.project}/runs/{run_id}"
    return f"{server}, project {config.track.project}, run {run_id}"


def _job_name(name: str) -> str:
    """Check the name of a job. Raises UserError."""
    if not name.isprintable() or not name.strip() or len(name) > 200:
        raise UserError.of("--job-name", name, "must be one printable line of at most 200 characters", "shorten it")
    return name
