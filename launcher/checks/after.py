"""Check what a job is to wait for, and write it in sbatch's words."""

import re

from launcher import slurm
from launcher.views import find, runs
from moco_dist.errors import UserError

_KEY = "--after"


def dependency(text: str, cluster: str | None = None) -> str | None:
    """Write the value of --after, a run or a job, in sbatch's words; None where the job need not wait any more.

    Args:
        text: the value.
        cluster: the cluster that the waiting job is sent to; None for the local one.

    Raises:
        UserError: it is no run and no job, or the job would wait for ever.
        Unavailable: SLURM does not tell.
    """
    name = text.removeprefix("any:")
    ended_well = "afterany" if name != text else "afterok"
    job = slurm.address(name, cluster) if re.fullmatch(r"\d+(_\d+)?", name) else _job_of_run(text, name, name != text)
    if job is None:
        return None
    if job != slurm.address(slurm.number(job), cluster):
        rule = f"job {job} and the new one are on different clusters, which cannot wait for each other"
        raise UserError.of(_KEY, text, rule, "wait for its end, or use the same slurm_cluster")
    predecessor = slurm.jobs([job]).get(job)
    if predecessor is None:  # sbatch would start the job at once
        raise UserError.of(_KEY, text, "SLURM knows no such job", "see launcher status")
    if not predecessor.live and (predecessor.state == "COMPLETED" or ended_well == "afterany"):
        return None
    if not predecessor.live or (predecessor.reason == slurm.NEVER and ended_well == "afterok"):
        how = f"has ended as {predecessor.state}" if not predecessor.live else "waits for a job that has failed"
        raise UserError.of(_KEY, text, f"job {job} {how}, and will never succeed", f"use --after any:{name}")
    return f"{ended_well}:{slurm.number(job)}"


def _job_of_run(text: str, name: str, may_fail: bool) -> str | None:
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
