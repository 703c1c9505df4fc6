"""Send a run: check it, write what the job needs into its run directory, and hand it to SLURM or to this machine."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launcher import elastic, job_ids, preparing, slurm, slurm_jobs, snapshot
from launcher.checks import after, preflight
from launcher.checks.finding import Finding
from launcher.cluster import Notify
from launcher.job import bad_nodes
from launcher.job.evaluation import Evaluation
from launcher.job.task import Task
from launcher.progress import counted
from launcher.record import Launch, Submission
from moco_dist import config as configs
from moco_dist import packages
from moco_dist.errors import UserError

_TIME = "%Y-%m-%dT%H:%M:%S%z"


def need_submitit() -> None:
    """Raise a UserError where submitit, which sends jobs, is missing or broken. What sends none needs none."""
    if fault := packages.fault("submitit"):
        raise UserError(f"{fault}, and it is what sends jobs; {packages.fix('submitit')}")


def try_again(
    name: str,
    launch: Launch,
    change: Callable[[Submission], Submission],
    *,
    replaces: bool = False,
    fresh_code: bool = False,
) -> tuple[Submission | None, int]:
    """Send a run again, and say so where it is refused, since other runs are not to wait for this one.

    Args:
        name: what to call the run.
        launch: its record.
        change: returns the submission to be sent, from the last one.
        replaces: whether the run is live, and a new job is to take over from its job.
        fresh_code: whether it gets the checkout's code, instead of the copy that it was sent with.

    Returns:
        The submission with its job; None where it was refused; and the exit status.

    Raises:
        slurm.Unavailable: SLURM does not answer.
    """
    try:
        return send_again(launch, change, replaces=replaces, fresh_code=fresh_code), 0
    except UserError as error:
        refusal, exit_status = str(error), 2
    except (slurm.Refused, OSError) as error:
        refusal, exit_status = str(error), 1
    print(f"launcher: {name}: {refusal}", file=sys.stderr, flush=True)
    return None, exit_status


def send_again(
    launch: Launch,
    change: Callable[[Submission], Submission] = lambda last: last,
    *,
    replaces: bool = False,
    fresh_code: bool = False,
) -> Submission:
    """Send a run again, as `try_again` does. Raises UserError, slurm.Refused, slurm.Unavailable."""
    need_submitit()
    last = launch.submission()
    if last is None:
        raise UserError.of("RUN", launch.run_dir, "was never sent", "send it: python -m launcher submit CONFIG.yaml")
    config = launch.config()
    submission = elastic.narrowed(config, change(last))
    if fresh_code:
        submission = submission.model_copy(update={"code": ""})
    cluster, before = submission.profile.slurm_cluster, last.profile.slurm_cluster
    if replaces and cluster != before:
        rule = f"the run's job is on {before or 'the local cluster'}, where no job of another one can wait for it"
        raise UserError.of("slurm_cluster", cluster, rule, f"python -m launcher cancel {launch.run_dir} before")
    if not checked(config, submission, runners=() if replaces else None):
        raise UserError.of("RUN", launch.run_dir, "cannot be sent as it is", "mend the errors above")
    if replaces:
        submission = submission.model_copy(update={"submitted": time.strftime(_TIME)})
        return send_successor(launch, preparing.with_code([launch], submission))
    dependency, note = after.remaining(last.after, before) if last.after else (None, "")
    if note:
        print(f"note: it does not wait any more: {note}", file=sys.stderr, flush=True)
    return send(config, submission.model_copy(update={"after": dependency}))


def code_in_words(before: Submission | None, sent: Submission) -> str:
    """Say which code a run that was sent again has."""
    if before is None or sent.code != before.code:
        return f"with the checkout's code, {sent.code}"
    hint = "" if snapshot.digest() == sent.code else "; --fresh-code takes the checkout's, which differs"
    return f"with its own copy of the code, {sent.code}{hint}"


def send_successor(launch: Launch, submission: Submission | None = None) -> Submission:
    """Send another job for a run that has one; it starts when that job has ended, and the run is then its own.

    Jobs that wait for the one before wait for the new one.

    Args:
        launch: the run's record.
        submission: what is to be sent; None: what was sent last, as a part of the same submission.

    Returns:
        The submission with the new job's id.

    Raises:
        slurm.Refused: sbatch refused the job.
        OSError: the record cannot be written; the job is cancelled again.
    """
    from launcher.executors import Sbatch

    last = launch.submission()
    assert last is not None
    new = submission
    if new is None:
        left_out = (*last.left_out, *bad_nodes.repeated(launch))
        new = last.model_copy(update={"earlier_jobs": (*last.earlier_jobs, last.job), "left_out": left_out})
    dependency = ",".join(filter(None, [f"afterany:{job_ids.number(last.job)}", last.after]))
    [number] = Sbatch(launch, new, dependency).send([_task(launch.config(), new)])
    job = job_ids.address(number, new.profile.slurm_cluster)
    new = new.model_copy(update={"job": job})
    _record([(launch, new)])
    with contextlib.suppress(slurm.Refused, slurm.Unavailable):
        slurm_jobs.redirect_dependents(last.job, job)
    return new


def send_evaluation(launch: Launch, submission: Submission, words: Sequence[str], dependency: str | None) -> str:
    """Send the job that evaluates a run, on one node.

    Args:
        launch: the run's record.
        submission: the run's submission, or what the job is to ask for instead.
        words: options of python -m moco_dist.evaluate.
        dependency: the run's job, in sbatch's words; None where the run is done.

    Returns:
        The job's id. Raises slurm.Refused, OSError.
    """
    from launcher.executors import EvaluationSbatch

    profile = submission.profile.model_copy(update={"min_nodes": None, "tasks": "node", "notify": Notify()})
    alone = {"nodes": 1, "least_nodes": None, "name": f"{submission.name[:190]}-evaluate", "profile": profile}
    submission = submission.model_copy(update=alone)
    launch.evaluation.mkdir(exist_ok=True, mode=0o700)
    root = launch.config().data.root if submission.stage else None
    job = Evaluation(str(launch.run_dir), submission, tuple(words), root or "")
    [number] = EvaluationSbatch(launch, submission, dependency).send([job])
    return job_ids.address(number, profile.slurm_cluster)


def _then_evaluate(launch: Launch, submission: Submission) -> None:
    """Send the evaluation that is to follow a run, and say so; where it is refused, the run goes on all the same."""
    if submission.then is None:
        return
    try:
        job = send_evaluation(launch, submission, submission.then, f"afterok:{job_ids.number(submission.job)}")
        print(f"evaluation: job {job}, when the run is done; log: {launch.evaluation_log}")
    except (slurm.Refused, OSError) as error:
        fix = f"python -m launcher evaluate {launch.run_dir}"
        print(f"launcher: the evaluation is not sent ({error}); send it with: {fix}", file=sys.stderr)


def absolute(config: configs.Config, *, staged: bool) -> configs.Config:
    """Return the config with whole paths, since a job runs in another folder; a root in a staged archive stays."""
    tree = config.model_dump(mode="json")
    tree["run"]["dir"] = str(config.run_dir.absolute())
    if config.run.init_from:
        tree["run"]["init_from"] = str(Path(config.run.init_from).absolute())
    if config.data.root and not staged:
        tree["data"]["root"] = str(Path(config.data.root).absolute())
    return configs.parse(tree)


def checked(
    config: configs.Config,
    submission: Submission,
    printed: set[Finding] | None = None,
    runners: Sequence[Finding] | None = None,
) -> bool:
    """Check a job, and print what is found.

    Args:
        config: config of the run.
        submission: what is to be sent.
        printed: findings that were printed before, which are not printed again; new ones are added.
        runners: who is in the run directory, as `preflight.check_free` finds it; None: it is looked up.

    Returns:
        Whether the job may be sent.
    """
    printed = set() if printed is None else printed
    findings = preflight.check(config, submission, runners)
    for finding in findings:
        if finding not in printed:
            print(f"{finding.level}: {finding.text}", file=sys.stderr)
        printed.add(finding)
    return all(finding.level != "error" for finding in findings)


def send(config: configs.Config, submission: Submission) -> Submission:
    """Send one job, as `send_all` does. Returns the submission with the job's id."""
    [sent] = send_all(Launch(config.run_dir), [config], submission)
    _then_evaluate(Launch(config.run_dir), sent)
    return sent


def send_all(
    place: Launch,
    members: Sequence[configs.Config],
    submission: Submission,
    parallel: int = 256,
    values: Sequence[dict[str, Any]] = (),
) -> list[Submission]:
    """Write into run directories what jobs need, and send these, several as an array.

    If they are not sent, all directories are put back as they were.

    Args:
        place: what SLURM knows the jobs by: the only one's record, or that of the sweep.
        members: config of each.
        submission: what all of them have in common.
        parallel: members of an array that run at once.
        values: what distinguishes each member of a sweep from the others.

    Returns:
        Their submissions, with the jobs' ids.

    Raises:
        UserError: another job is in a run directory, or it cannot be written.
        slurm.Refused: sbatch refused the jobs.
    """
    launches = [Launch(config.run_dir) for config in members]
    try:
        with contextlib.ExitStack() as stack:
            if submission.sweep:  # the copy of the code is there; of an array, its scripts as well
                sweep = Launch(Path(submission.sweep))
                stack.enter_context(preparing.held(sweep, *([place.submitit] if place == sweep else [])))
            for launch in counted(launches, "run directories are made"):
                stack.enter_context(preparing.held(launch, launch.logs, launch.submitit))
            sent = _send_held(place, list(zip(launches, members, strict=True)), submission, parallel)
            if values:
                sent = [one.model_copy(update={"values": own}) for one, own in zip(sent, values, strict=True)]
            _record(list(zip(launches, sent, strict=True)))
            return sent
    except OSError as error:
        rule = f"cannot be written: {error.strerror or error}"
        raise UserError.of("run.dir", place.run_dir, rule, "choose another") from None


def _send_held(
    place: Launch, members: Sequence[tuple[Launch, configs.Config]], submission: Submission, parallel: int
) -> list[Submission]:
    """Prepare run directories that are held, and send their jobs, as `send_all` does. Raises OSError as well."""
    from launcher.executors import Sbatch, send_locally

    launches = [launch for launch, _ in members]
    preparing.refuse_taken(launches, submission.profile.slurm_cluster)
    submission = preparing.with_code(launches, submission)
    for launch, config in counted(members, "configs are written"):
        preparing.write(launch, config)
    one = submission.model_copy(update={"submitted": time.strftime(_TIME)})
    tasks = [_task(config, one) for _, config in members]
    if submission.executor == "local":
        return [send_locally(place, task) for task in tasks]
    numbers = Sbatch(place, one, submission.after, parallel).send(tasks)
    return [one.model_copy(update={"job": job_ids.address(n, one.profile.slurm_cluster)}) for n in numbers]


def _record(sent: Sequence[tuple[Launch, Submission]]) -> None:
    """Note jobs as the last ones of their runs; where that fails, cancel them. Raises OSError."""
    try:
        for launch, submission in sent:
            launch.write(submission)
    except BaseException:  # a job without a record is lost to its user
        for _, submission in sent:
            with contextlib.suppress(slurm.Refused, slurm.Unavailable):
                slurm_jobs.cancel(submission.job)
        raise


def _task(config: configs.Config, submission: Submission) -> Task:
    """Return what the job runs, for submitit to pickle."""
    return Task(str(config.run_dir), submission, (config.data.root or "") if submission.stage else "")
