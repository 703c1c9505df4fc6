"""Check what a job is to wait for, and write it in sbatch's words."""

import re

from launcher import slurm
from launcher.views import find, runs
from moco_dist.errors import UserError

_KEY = "--after"


def dependency(text: str) -> str | None:
    """Write the value of --after, a run or a job, in sbatch's words; None where the job need not wait any more.

    Raises:
        UserError: it is no run and no job, or the job would wait for ever.
        Unavailable: SLURM does not tell.
    """
    name = text.removeprefix("any:")
    ended_well = "afterany" if name != text else "afterok"
    job = name if re.fullmatch(r"\d+(_\d+)?", name) else _job_of_run(text, name, may_fail=name != text)
    if job is None:
        return None
    predecessor = slurm.jobs([job]).get(job)
    if predecessor is None:  # sbatch would start the job at once
        raise UserError.of(_KEY, text, "SLURM knows no such job", "see launcher status")
    if not predecessor.live and (predecessor.state == "COMPLETED" or ended_well == "afterany"):
        return None
    if not predecessor.live or (predecessor.reason == slurm.NEVER and ended_well == "afterok"):
        how = f"has ended as {predecessor.state}" if not predecessor.live else "waits for a job that has failed"
        raise UserError.of(_KEY, text, f"job {job} {how}, and will never succeed", f"use --after any:{name}")
    return f"{ended_well}:{job}"


def remaining(dependency: str) -> tuple[str | None, str]:
    """Return what is left of a dependency when a job that had it is sent again.

    Where the run of the job that it waited for has another job by now, that one is waited for.

    Args:
        dependency: in sbatch's words, `afterok:12`.

    Returns:
        The dependency in sbatch's words, None where the job need not wait; and where that is since what it waited for
        has failed or is gone, the reason.

    Raises:
        Unavailable: SLURM does not tell.
    """
    ended_well, _, job = dependency.partition(":")
    job = find.last_job_after(job) or job
    predecessor = slurm.jobs([job]).get(job)
    if predecessor is None:
        return None, f"job {job} is not known to SLURM any more"
    if predecessor.live and (predecessor.reason != slurm.NEVER or ended_well == "afterany"):
        return f"{ended_well}:{job}", ""
    if predecessor.state == "COMPLETED" or ended_well == "afterany":
        return None, ""
    how = "can never start" if predecessor.live else f"has ended as {predecessor.state}"
    return None, f"job {job} {how}"


def _job_of_run(text: str, name: str, *, may_fail: bool) -> str | None:
    """Find the job of a run; None where the run has ended, and may have as it did. Raises UserError, Unavailable."""
    [run] = runs.look_surely([find.run(name, _KEY)])
    assert run.submission is not None
    if run.state == "done" or (run.ended and may_fail):
        return None
    if run.ended:
        fix = f"python -m launcher requeue {run.name}, or use --after any:{name}"
        raise UserError.of(_KEY, text, f"the run has ended: {run.state}", fix)
    if run.local:
        rule = "the run is on this machine, and SLURM cannot wait for it"
        raise UserError.of(_KEY, text, rule, "wait for its end")
    return run.submission.job
