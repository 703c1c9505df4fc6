"""Check what a job is to wait for, and write it in sbatch's words."""

import re

from launcher import job_ids, slurm_jobs
from launcher.views import find, runs
from moco_dist.errors import UserError

_KEY = "--after"


def dependency(text: str, cluster: str | None = None) -> str | None:
    """Write the value of --after, runs or jobs, in sbatch's words; None where the job need not wait any more.

    Args:
        text: the value.
        cluster: the cluster that the waiting job is sent to; None for the local one.

    Raises:
        UserError: it is no run, no sweep and no job, or the job would wait for ever.
        Unavailable: SLURM does not tell.
    """
    name = text.removeprefix("any:")
    may_fail = name != text
    is_job = re.fullmatch(r"\d+(_\d+)?", name)
    ids = [job_ids.address(name, cluster)] if is_job else _jobs_of_runs(text, name, may_fail=may_fail)
    if strange := [job for job in ids if job != job_ids.address(job_ids.number(job), cluster)]:
        rule = f"job {strange[0]} and the new one are on different clusters, which cannot wait for each other"
        raise UserError.of(_KEY, text, rule, "wait for its end, or use the same slurm_cluster")
    jobs_by_id = slurm_jobs.jobs(ids) if ids else {}
    predecessors = []
    for name_of_job in ids:
        members = [job for job in jobs_by_id.values() if job.array == name_of_job]
        jobs = [jobs_by_id[name_of_job]] if name_of_job in jobs_by_id else members
        if not jobs:  # sbatch would start the job at once
            raise UserError.of(_KEY, text, "SLURM knows no such job", "see python -m launcher status")
        predecessors += [job_ids.number(job.id) for job in jobs if _must_wait(text, job, may_fail=may_fail)]
    kind = "afterany" if may_fail else "afterok"
    return f"{kind}:{':'.join(predecessors)}" if predecessors else None


def remaining(dependency: str, cluster: str | None = None) -> tuple[str | None, str]:
    """Return what is left of a dependency when a job that had it is sent again.

    Where the run of the job that it waited for has another job by now, that one is waited for.

    Args:
        dependency: in sbatch's words, `afterok:12` or `afterok:12:13`.
        cluster: where the jobs are; None for the local one.

    Returns:
        The dependency in sbatch's words, None where the job need not wait; and where that is since what it waited for
        has failed or is gone, the reason.

    Raises:
        Unavailable: SLURM does not tell.
    """
    kind, *earlier = dependency.split(":")
    ids = [find.last_job_after(job) or job for job in (job_ids.address(number, cluster) for number in earlier)]
    jobs_by_id, waits = slurm_jobs.jobs(ids), list[str]()
    for job in ids:
        predecessor = jobs_by_id.get(job)
        if predecessor is None:
            return None, f"job {job} is not known to SLURM any more"
        if predecessor.live and (predecessor.reason != slurm_jobs.NEVER or kind == "afterany"):
            waits.append(job_ids.number(job))
        elif predecessor.state != "COMPLETED" and kind != "afterany":
            how = "can never start" if predecessor.live else f"has ended as {predecessor.state}"
            return None, f"job {job} {how}"
    return (":".join([kind, *waits]) if waits else None), ""


def _must_wait(text: str, job: slurm_jobs.Job, *, may_fail: bool) -> bool:
    """Return whether there is a job to wait for. Raises UserError where that would be for ever."""
    if not job.live and (job.state == "COMPLETED" or may_fail):
        return False
    if not job.live or (job.reason == slurm_jobs.NEVER and not may_fail):
        how = f"has ended as {job.state}" if not job.live else "waits for a job that has failed"
        fix = f"use --after any:{text.removeprefix('any:')}"
        raise UserError.of(_KEY, text, f"job {job.id} {how}, and will never succeed", fix)
    return True


def _jobs_of_runs(text: str, name: str, *, may_fail: bool) -> list[str]:
    """List the jobs of a run or of a sweep's members, but of those that may have ended as they did.

    Raises:
        UserError: there is no such run, or one has failed, or runs on this machine.
        Unavailable: SLURM does not tell.
    """
    jobs = []
    for run in runs.look_surely(find.runs([name], _KEY)):
        assert run.submission is not None
        if run.state == "done" or (run.ended and may_fail):
            continue
        if run.ended:
            fix = f"python -m launcher requeue {run.name}, or use --after any:{name}"
            rule = "the run has ended" if run.name == name else f"the run {run.name} has ended"
            raise UserError.of(_KEY, text, f"{rule}: {run.state}", fix)
        if run.local:
            rule = "the run is on this machine, and SLURM cannot wait for it"
            raise UserError.of(_KEY, text, rule, "wait for its end")
        jobs.append(run.submission.job)
    return jobs
