"""Send a run to SLURM, or with --local to this machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher import options, slurm, snapshot
from launcher.checks.finding import Finding
from launcher.commands import preflight
from launcher.job.task import Training
from launcher.record import Launch, Submission, refuse_others
from launcher.views import follow
from moco_dist import config as configs
from moco_dist import files, packages
from moco_dist.config import Config
from moco_dist.errors import UserError
from moco_dist.run import status
from moco_dist.run.lease import Lease
from moco_dist.tracking.identity import fixed_id


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    options.job_options(parser)
    parser.add_argument("--after", metavar="JOB", help="start after this job has succeeded; any:JOB, however it ended")
    parser.add_argument("--job-name", metavar="NAME", help="name of the job; unset, run.name")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch text and the config, send nothing")
    parser.add_argument("--wait", action="store_true", help="follow the job to its end; exit 0, 2, 75 or 1 as it ended")


def run(given: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    need_submitit()
    profile = options.profile_of(given)
    config = absolute(configs.load(*configs.parse_arguments(given.words)), staged=given.stage is not None)
    submission = Submission(
        executor="local" if given.local else "slurm",
        name=_job_name(given.job_name) if given.job_name else config.run.name[:200],
        nodes=given.nodes,
        profile=profile,
        stage=str(Path(given.stage).resolve()) if given.stage else None,
    )
    dependency = _dependency(given.after)
    ready, launch = checked(config, submission), Launch(config.run_dir)
    if given.dry_run:
        _show(launch, config, submission, dependency)
    if given.dry_run or not ready:
        return 0 if ready else 2
    submission = send(config, submission, dependency)
    announce(launch, config, submission)
    return follow.follow(launch) if given.wait else 0


def _show(launch: Launch, config: Config, submission: Submission, dependency: str | None) -> None:
    """Print what would be sent."""
    from launcher.executors import Sbatch

    submission = submission.model_copy(update={"code": snapshot.digest()})
    sbatch = Sbatch(launch.submitit, launch.run_dir, submission, code_of(launch, submission), dependency)
    sys.stdout.write(f"{sbatch.text()}\n\n# the config, {launch.config_file}\n{configs.dump(config)}")


def need_submitit() -> None:
    """Raise a UserError where submitit, which sends jobs, is missing or broken. What sends none needs none."""
    if fault := packages.fault("submitit"):
        raise UserError(f"{fault}, and it is what sends jobs; install it (pip install submitit)")


def again(launch: Launch) -> Submission:
    """Send a run again as it was sent last. Raises UserError, slurm.Refused, slurm.Unavailable."""
    need_submitit()
    last = launch.submission()
    if last is None:
        raise UserError.of("RUN", launch.run_dir, "was never sent", "send it: python -m launcher submit CONFIG.yaml")
    config = launch.config()
    if not checked(config, last):
        raise UserError.of("RUN", launch.run_dir, "cannot be sent as it is", "mend the errors above")
    return send(config, last)


def absolute(config: Config, *, staged: bool) -> Config:
    """The config with whole paths: a job runs in another folder. Inside a staged archive the root stays relative."""
    tree = config.model_dump(mode="json")
    tree["run"]["dir"] = str(config.run_dir.absolute())
    if config.run.init_from:
        tree["run"]["init_from"] = str(Path(config.run.init_from).absolute())
    if config.data.root and not staged:
        tree["data"]["root"] = str(Path(config.data.root).absolute())
    return configs.parse(tree)


def checked(config: Config, submission: Submission, told: set[Finding] | None = None) -> bool:
    """Print what preflight finds, but for what was told. Returns whether the job may be sent."""
    told = set() if told is None else told
    findings = preflight.check(
        config,
        submission.profile,
        submission.nodes,
        run_dir=config.run_dir,
        stage=submission.stage,
        executor=submission.executor,
    )
    for finding in findings:
        if finding not in told:
            print(f"{finding.level}: {finding.text}", file=sys.stderr)
        told.add(finding)
    return all(finding.level != "error" for finding in findings)


def send(config: Config, submission: Submission, dependency: str | None = None) -> Submission:
    """Leave in the run directory what the job needs, and send it. Returns the submission with the job's id.

    Raises:
        UserError: another job is in the run directory, or it cannot be written.
        slurm.Refused: sbatch refused the job.
    """
    from launcher.executors import Sbatch, send_locally

    launch = Launch(config.run_dir)
    with prepared(config, submission) as sent:
        if sent.executor == "local":
            sent = send_locally(launch.submitit, code_of(launch, sent), training(launch, sent))
        else:
            sbatch = Sbatch(launch.submitit, launch.run_dir, sent, code_of(launch, sent), dependency)
            sent = sent.model_copy(update={"job": sbatch.send([training(launch, sent)])[0]})
        record([(launch, sent)])
    return sent


def record(sent: Sequence[tuple[Launch, Submission]]) -> None:
    """Keep submissions that are in the queue; a job that cannot be kept account of is cancelled. Raises OSError."""
    try:
        for launch, submission in sent:
            launch.write(submission)
    except OSError:
        for _, submission in sent:
            with contextlib.suppress(slurm.Refused, slurm.Unavailable):
                slurm.cancel(submission.job)
        raise


@contextlib.contextmanager
def prepared(config: Config, submission: Submission) -> Iterator[Submission]:
    """The run directory with all that a job needs; within it, no other submission can be made there.

    Raises:
        UserError: a job or another submission is in the directory, or it cannot be written.
    """
    launch = Launch(config.run_dir)
    try:
        launch.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        refuse_others(launch.run_dir)
        copies = codes(launch, submission)
        for folder in (launch.folder, launch.logs, launch.submitit, copies):
            folder.mkdir(exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        lease = Lease(launch.folder)
        try:
            for found in preflight.live(launch.run_dir):  # another submission may have been made since the first look
                raise UserError(found.text)
            code = snapshot.take(copies).name
            snapshot.describe(launch.folder)
            if config.track.wandb != "disabled":
                fixed_id(launch.run_dir / "wandb")
            with _written(launch, config):
                now = time.strftime("%Y-%m-%dT%H:%M:%S")
                yield submission.model_copy(update={"code": code, "submitted": now})
        finally:
            lease.release()
    except OSError as error:
        rule = f"cannot be written: {error.strerror or error}"
        raise UserError.of("run.dir", config.run_dir, rule, "choose another") from None


def announce(launch: Launch, config: Config, submission: Submission) -> None:
    """Say where to look."""
    command = f"python -m launcher logs -f {shlex.quote(str(launch.run_dir))}"
    print(f"{'process' if submission.executor == 'local' else 'job'}: {submission.job}")
    print(f"run directory: {launch.run_dir}")
    print(f"log: {launch.log(0)} ({command})")
    if config.track.wandb != "disabled":
        print(f"W&B: {wandb_place(launch, config)}")


def wandb_place(launch: Launch, config: Config) -> str:
    """Where the run is found at W&B."""
    run_id = fixed_id(launch.run_dir / "wandb")
    if config.track.wandb == "offline":
        return f"offline; send it with: wandb sync {shlex.quote(str(launch.run_dir / 'wandb'))}/offline-run-*"
    server = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").replace("https://api.", "https://").rstrip("/")
    entity = os.environ.get("WANDB_ENTITY")
    if entity:
        return f"{server}/{entity}/{config.track.project}/runs/{run_id}"
    return f"{server}, project {config.track.project}, run {run_id}"


@contextlib.contextmanager
def _written(launch: Launch, config: Config) -> Iterator[None]:
    """The config for the job, and no old verdict that would end it; as it was where the job is not taken."""
    before = launch.config_file.read_text(encoding="utf-8") if launch.config_file.exists() else None
    state, step, reason = status.read(launch.run_dir)
    files.write_text(launch.config_file, configs.dump(config))
    if state not in (None, "done"):
        status.write(launch.run_dir, "stopped", step, "sent again")
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if before is not None:
                files.write_text(launch.config_file, before)
        if state is not None:
            status.write(launch.run_dir, state, step, reason)
        raise


def code_of(launch: Launch, submission: Submission) -> str:
    """Folder of the code that the job runs."""
    return str(codes(launch, submission) / submission.code)


def codes(launch: Launch, submission: Submission) -> Path:
    """Where copies of the code lie; the members of a sweep share them."""
    return Launch(Path(submission.sweep) if submission.sweep else launch.run_dir).folder / "code"


def training(launch: Launch, submission: Submission) -> Training:
    """What the job runs."""
    root = launch.config().data.root if submission.stage else None
    return Training(str(launch.run_dir), submission, root or "")


def _job_name(name: str) -> str:
    if not name.isprintable() or not name.strip() or len(name) > 200:
        raise UserError.of("--job-name", name, "must be one printable line of at most 200 characters", "shorten it")
    return name


def _dependency(after: str | None) -> str | None:
    if after is None:
        return None
    found = re.fullmatch(r"(any:)?(\d+(?:_\d+)?)", after)
    if not found:
        raise UserError.of("--after", after, "must be a job's id, or any: and a job's id", "see launcher status")
    if not slurm.jobs([found[2]]):  # sbatch would start the job at once
        raise UserError.of("--after", after, "SLURM knows no such job", "see launcher status")
    return f"after{'any' if found[1] else 'ok'}:{found[2]}"
