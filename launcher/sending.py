"""Send a run: check it, write what the job needs into its run directory, and hand it to SLURM or to this machine."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher import slurm, snapshot
from launcher.checks import directory, preflight
from launcher.checks.finding import Finding
from launcher.job.task import Task
from launcher.record import Launch, Submission, refuse_others
from moco_dist import config as configs
from moco_dist import files, packages
from moco_dist.config import Config
from moco_dist.errors import UserError
from moco_dist.run import status
from moco_dist.run.lease import Lease


def need_submitit() -> None:
    """Raise a UserError where submitit, which sends jobs, is missing or broken. What sends none needs none."""
    if fault := packages.fault("submitit"):
        raise UserError(f"{fault}, and it is what sends jobs; install it (pip install submitit)")


def send_again(launch: Launch) -> Submission:
    """Send a run as it was sent last. Raises UserError, slurm.Refused, slurm.Unavailable."""
    need_submitit()
    last = launch.submission()
    if last is None:
        raise UserError.of("RUN", launch.run_dir, "was never sent", "send it: python -m launcher submit CONFIG.yaml")
    config = launch.config()
    if not checked(config, last):
        raise UserError.of("RUN", launch.run_dir, "cannot be sent as it is", "mend the errors above")
    return send(config, last)


def absolute(config: Config, *, staged: bool) -> Config:
    """Return the config with whole paths, since a job runs in another folder; a root in a staged archive stays."""
    tree = config.model_dump(mode="json")
    tree["run"]["dir"] = str(config.run_dir.absolute())
    if config.run.init_from:
        tree["run"]["init_from"] = str(Path(config.run.init_from).absolute())
    if config.data.root and not staged:
        tree["data"]["root"] = str(Path(config.data.root).absolute())
    return configs.parse(tree)


def checked(config: Config, submission: Submission, printed: set[Finding] | None = None) -> bool:
    """Check a job, and print what is found.

    Args:
        config: config of the run.
        submission: what is to be sent.
        printed: findings that were printed before, which are not printed again; new ones are added.

    Returns:
        Whether the job may be sent.
    """
    printed = set() if printed is None else printed
    findings = preflight.check(
        config,
        submission.profile,
        submission.nodes,
        run_dir=config.run_dir,
        stage=submission.stage,
        executor=submission.executor,
    )
    for finding in findings:
        if finding not in printed:
            print(f"{finding.level}: {finding.text}", file=sys.stderr)
        printed.add(finding)
    return all(finding.level != "error" for finding in findings)


def send(config: Config, submission: Submission, dependency: str | None = None) -> Submission:
    """Write into the run directory what the job needs, and send it. Returns the submission with the job's id.

    Raises:
        UserError: another job is in the run directory, or it cannot be written.
        slurm.Refused: sbatch refused the job.
    """
    from launcher.executors import Sbatch, send_locally

    launch = Launch(config.run_dir)
    with prepared(config, submission) as sent:
        if sent.executor == "local":
            sent = send_locally(launch.submitit, code_of(launch, sent), task_of(launch, sent))
        else:
            sbatch = Sbatch(launch.submitit, launch.run_dir, sent, code_of(launch, sent), dependency)
            sent = sent.model_copy(update={"job": sbatch.send([task_of(launch, sent)])[0]})
        record([(launch, sent)])
    return sent


def record(sent: Sequence[tuple[Launch, Submission]]) -> None:
    """Record submissions that are in the queue; jobs that cannot be recorded are cancelled. Raises OSError."""
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
    """Write into the run directory what a job needs; until the context ends, no other submission can be made there.

    Raises:
        UserError: a job or another submission is in the directory, or it cannot be written.
    """
    launch = Launch(config.run_dir)
    try:
        launch.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        refuse_others(launch.run_dir)
        copies = codes_of(launch, submission)
        for folder in (launch.folder, launch.logs, launch.submitit, copies):
            folder.mkdir(exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        lease = Lease(launch.folder)
        try:
            for finding in directory.check_free(launch.run_dir):  # someone may have come since the first look
                raise UserError(finding.text)
            code = snapshot.take(copies).name
            snapshot.describe(launch.folder)
            if config.track.wandb != "disabled":
                from moco_dist.tracking.wandb_run import fixed_id  # its package is slow to import

                fixed_id(launch.paths.wandb)
            with _written(launch, config):
                now = time.strftime("%Y-%m-%dT%H:%M:%S")
                yield submission.model_copy(update={"code": code, "submitted": now})
        finally:
            lease.release()
    except OSError as error:
        rule = f"cannot be written: {error.strerror or error}"
        raise UserError.of("run.dir", config.run_dir, rule, "choose another") from None


def code_of(launch: Launch, submission: Submission) -> str:
    """Return the folder of the code that the job runs."""
    return str(codes_of(launch, submission) / submission.code)


def codes_of(launch: Launch, submission: Submission) -> Path:
    """Return the folder of the copies of the code; the members of a sweep share it."""
    return Launch(Path(submission.sweep) if submission.sweep else launch.run_dir).folder / "code"


def task_of(launch: Launch, submission: Submission) -> Task:
    """Return what the job runs, for submitit to pickle."""
    root = launch.config().data.root if submission.stage else None
    return Task(str(launch.run_dir), submission, root or "")


@contextlib.contextmanager
def _written(launch: Launch, config: Config) -> Iterator[None]:
    """Write the config, and a status that lets the job start; put both back as they were if it is not sent."""
    old_config = launch.config_file.read_text(encoding="utf-8") if launch.config_file.exists() else None
    before = launch.status()
    files.write_text(launch.config_file, configs.dump(config))
    if before.state not in (None, "done"):
        status.write(launch.run_dir, "stopped", before.step, "sent again")
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if old_config is not None:
                files.write_text(launch.config_file, old_config)
        if before.state is not None:
            status.write(launch.run_dir, before.state, before.step, before.reason)
        raise
