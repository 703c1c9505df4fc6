"""Send a run to SLURM, or with --local to this machine."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

from launcher import sending, slurm, snapshot
from launcher.options import add_job_options, profile_of
from launcher.record import Launch, Submission
from launcher.views.follow import follow
from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_job_options(parser)
    parser.add_argument("--after", metavar="JOB", help="start after this job has succeeded; any:JOB, however it ended")
    parser.add_argument("--job-name", metavar="NAME", help="name of the job; unset, run.name")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch text and the config, send nothing")
    parser.add_argument("--wait", action="store_true", help="follow the job to its end; exit 0, 2, 75 or 1 as it ended")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    sending.need_submitit()
    profile, staged = profile_of(options), options.stage is not None
    config = sending.absolute(configs.load(*configs.parse_arguments(options.words)), staged=staged)
    submission = Submission(
        executor="local" if options.local else "slurm",
        name=_job_name(options.job_name) if options.job_name else config.run.name[:200],
        nodes=options.nodes,
        profile=profile,
        stage=str(Path(options.stage).resolve()) if staged else None,
    )
    dependency = _dependency(options.after)
    ready, launch = sending.checked(config, submission), Launch(config.run_dir)
    if options.dry_run:
        _print_dry(launch, config, submission, dependency)
    if options.dry_run or not ready:
        return 0 if ready else 2
    submission = sending.send(config, submission, dependency)
    _announce(launch, config, submission)
    return follow(launch) if options.wait else 0


def _print_dry(launch: Launch, config: Config, submission: Submission, dependency: str | None) -> None:
    """Print what would be sent."""
    from launcher.executors import Sbatch

    submission = submission.model_copy(update={"code": snapshot.digest()})
    sbatch = Sbatch(launch.submitit, launch.run_dir, submission, sending.code_of(launch, submission), dependency)
    sys.stdout.write(f"{sbatch.text()}\n\n# the config, {launch.config_file}\n{configs.dump(config)}")


def _announce(launch: Launch, config: Config, submission: Submission) -> None:
    """Print where the job and its logs are."""
    command = f"python -m launcher logs -f {shlex.quote(str(launch.run_dir))}"
    print(f"{'process' if submission.executor == 'local' else 'job'}: {submission.job}")
    print(f"run directory: {launch.run_dir}")
    print(f"log: {launch.log(0)} ({command})")
    if config.track.wandb != "disabled":
        print(f"W&B: {_wandb_place(launch, config)}")


def _wandb_place(launch: Launch, config: Config) -> str:
    """Return the place where the run is found at W&B."""
    from moco_dist.tracking.wandb_run import fixed_id  # its package is slow to import

    run_id = fixed_id(launch.paths.wandb)
    if config.track.wandb == "offline":
        return f"offline; send it with: wandb sync {shlex.quote(str(launch.run_dir / 'wandb'))}/offline-run-*"
    server = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").replace("https://api.", "https://").rstrip("/")
    entity = os.environ.get("WANDB_ENTITY")
    if entity:
        return f"{server}/{entity}/{config.track.project}/runs/{run_id}"
    return f"{server}, project {config.track.project}, run {run_id}"


def _job_name(name: str) -> str:
    """Check the name of a job. Raises UserError."""
    if not name.isprintable() or not name.strip() or len(name) > 200:
        raise UserError.of("--job-name", name, "must be one printable line of at most 200 characters", "shorten it")
    return name


def _dependency(after: str | None) -> str | None:
    """Write the option --after in sbatch's words. Raises UserError."""
    if after is None:
        return None
    words = re.fullmatch(r"(any:)?(\d+(?:_\d+)?)", after)
    if not words:
        raise UserError.of("--after", after, "must be a job's id, or any: and a job's id", "see launcher status")
    if not slurm.jobs([words[2]]):  # sbatch would start the job at once
        raise UserError.of("--after", after, "SLURM knows no such job", "see launcher status")
    return f"after{'any' if words[1] else 'ok'}:{words[2]}"
