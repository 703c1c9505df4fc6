"""Send a run to SLURM, or with --local to this machine."""

import argparse
import os
import shlex
import sys
import time

from launcher import sending, slurm, snapshot
from launcher.checks import after, evaluation
from launcher.options import add_job_options, submission_of
from launcher.record import Launch, Submission
from launcher.views import runs, verdict
from moco_dist import config as configs
from moco_dist.errors import UserError
from moco_dist.run import status
from moco_dist.run.directory import load_config

_LOOK_SECONDS = 1.0
_PRINT_SECONDS = 30.0
_SURE_SECONDS = 8.0
"""How long an end must last: a job whose node died is ended for SLURM before it is requeued."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_job_options(parser)
    text = "start after this run or job has succeeded; any:RUN, however it ended"
    parser.add_argument("--after", metavar="RUN", help=text)
    text = "then evaluate the run as a job of its own: evaluate, or 'evaluate --linear --labels 100'"
    parser.add_argument("--then", metavar="WORDS", help=text)
    parser.add_argument("--job-name", metavar="NAME", help="name of the job; unset, run.name")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch text and the config, send nothing")
    parser.add_argument("--wait", action="store_true", help="follow the job to its end; exit 0, 2, 75 or 1 as it ended")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    sending.need_submitit()
    submission = submission_of(options)
    loaded = load_config(*configs.parse_arguments(options.words))
    config = sending.absolute(loaded, staged=submission.stage is not None)
    name = _job_name(options.job_name) if options.job_name else config.run.name[:200]
    dependency = after.dependency(options.after, submission.profile.slurm_cluster) if options.after else None
    then = evaluation.words_of(options.then, local=options.local) if options.then is not None else None
    submission = submission.model_copy(update={"name": name, "after": dependency, "then": then})
    ready, launch = sending.checked(config, submission), Launch(config.run_dir)
    if options.dry_run:
        _print_dry(launch, config, submission)
    if options.dry_run or not ready:
        return 0 if ready else 2
    submission = sending.send(config, submission)
    _announce(launch, config, submission)
    return _follow(launch) if options.wait else 0


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
        print(f"W&B: {_wandb_place(launch, config)}")


def _wandb_place(launch: Launch, config: configs.Config) -> str:
    """Return the place where the run is found at W&B."""
    from moco_dist.tracking.wandb_run import fixed_id  # its package is slow to import

    run_id = fixed_id(launch.paths.wandb)
    if config.track.wandb == "offline":
        return f"offline; send it with: wandb sync {shlex.quote(str(launch.run_dir / 'wandb'))}/offline-run-*"
    server = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").replace("https://api.", "https://").rstrip("/")
    if entity := os.environ.get("WANDB_ENTITY"):
        return f"{server}/{entity}/{config.track.project}/runs/{run_id}"
    return f"{server}, project {config.track.project}, run {run_id}"


def _follow(launch: Launch) -> int:
    """Print how the run goes, until it has ended for good.

    Returns:
        0 done, 2 a mistake of the user's, 75 stopped with its state saved, 1 anything else: by status.json.
    """
    printed, printed_at, ended_at = "", 0.0, None
    try:
        while True:
            [run] = runs.look([launch])
            now = time.monotonic()
            news = f"{run.state} {max(run.evidence.starts, 1)} {run.reason if run.state != 'running' else ''}"
            if news != printed or (run.live and now - printed_at > _PRINT_SECONDS):
                print(_line(run), file=sys.stderr, flush=True)
                printed, printed_at = news, now
            ended_at = (ended_at or now) if run.ended else None
            if run.state == "unreadable":
                return 1
            if ended_at and (run.state in verdict.FOR_GOOD or now - ended_at > _SURE_SECONDS):
                return _exit_status(run)
            if run.waits and run.reason == slurm.NEVER:
                print(f"{run.name} can never start: what it waits for has failed", file=sys.stderr)
                return 1
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        print(f"the job goes on; look again with: python -m launcher status {launch.run_dir}", file=sys.stderr)
        return 130


def _line(run: runs.Run) -> str:
    """Write in a line how a run stands."""
    figures = run.figures
    speed = figures.images_per_second if run.state == "running" else None
    parts = [f"step {run.step}" + (f"/{figures.total_steps}" if figures.total_steps else "")]
    parts += [f"loss {figures.loss:.4g}"] if figures.loss is not None else []
    parts += [f"kNN {100 * figures.knn_top1:.2f} %"] if figures.knn_top1 is not None else []
    parts += [f"{speed:.3g} images/s"] if speed else []
    parts += [f"restarts {run.evidence.starts - 1}"] if run.evidence.starts > 1 else []
    why = f": {run.reason}" if run.reason and run.reason != "None" else ""
    return f"{time.strftime('%H:%M:%S')} {run.name} {run.state}, {', '.join(parts)}{why}"


def _exit_status(run: runs.Run) -> int:
    """Return the exit status of a run that has ended; 1 for one that died, whose status still says `running`.

    A status that is older than the job says nothing about it.
    """
    state = "done" if run.state == "done" else run.trainer_state
    return status.EXIT_CODES[state] if state in ("done", "user_error", "stopped") else 1  # type: ignore[index]


def _job_name(name: str) -> str:
    """Check the name of a job. Raises UserError."""
    if not name.isprintable() or not name.strip() or len(name) > 200:
        raise UserError.of("--job-name", name, "must be one printable line of at most 200 characters", "shorten it")
    return name
