"""Ask SLURM about jobs, on whatever cluster they are, and give it orders about them."""

import contextlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from launcher import job_ids, slurm
from launcher.slurm import Refused, Unavailable

_WAITS = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
_RUNS = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}
)

_REVOKED = "REVOKED"
"""The state of a federation's job on a cluster when another cluster has begun it."""
_FORM = "--format=%i|%T|%r|%N|%L %S|%k"
"""The columns that squeue is asked for."""

NEVER = "DependencyNeverSatisfied"
"""Why a job waits that can never start."""


@dataclass(frozen=True)
class Job:
    """This is a job, or one member of an array, as the queue or the accounting has it."""

    id: str
    """`12`, or `12_3` for a member of an array; with the name of a cluster that was named to SLURM, `12@gpu`."""
    state: str
    """SLURM's word: PENDING, RUNNING, COMPLETED, CANCELLED ..."""
    reason: str = ""
    """Why it waits or ended."""
    nodes: str = ""
    """The nodes it runs on."""
    time_left: str = ""
    """Time until its limit, as SLURM writes it."""
    run_dir: str = ""
    """The run directory, which jobs of ours carry as their comment."""
    started: str = ""
    """When its last start began, as SLURM writes it: local time; for one that waits, when SLURM means to start it."""

    @property
    def array(self) -> str:
        """Return the id of the array that it is a member of; of another job, its own."""
        return job_ids.array(self.id)

    @property
    def waits(self) -> bool:
        return self.state in _WAITS

    @property
    def suspended(self) -> bool:
        """Return whether SLURM has stopped it for a while: it takes no signal, and no further step begins in it."""
        return self.state in ("SUSPENDED", "STOPPED")

    @property
    def live(self) -> bool:
        """Return whether the job waits or runs."""
        return self.state in _WAITS | _RUNS


def queue(
    ids: Collection[str] = (), timeout_seconds: float | None = None, cluster: str | None = None
) -> dict[str, Job]:
    """Ask the queue for the named jobs and members of arrays, or all of this user's: live and lately ended ones.

    Raises:
        Unavailable: SLURM does not answer.
    """
    queued: dict[str, Job] = {}
    for place, numbers in (job_ids.by_cluster(ids) or {cluster or "": []}).items():
        queued |= _queue(numbers, timeout_seconds, place)
    return queued


def _queue(ids: Collection[str], timeout_seconds: float | None, cluster: str) -> dict[str, Job]:
    """Ask the queue of one cluster, as `queue` does, for jobs under their numbers there."""
    parents = sorted({job.partition("_")[0] for job in ids})
    which = f"--jobs={','.join(parents)}" if parents else f"--user={os.getuid()}"
    try:
        what = ("--states=all", "--array", "--noheader", which, _FORM, *job_ids.on_cluster(cluster))
        text = slurm.call("squeue", *what, timeout_seconds=timeout_seconds)
    except Refused as error:  # one unknown id among several is passed over; a single one is an error
        if "Invalid job id" not in str(error):
            raise Unavailable(str(error)) from None
        return {}
    jobs = {job.id: job for line in text.splitlines() if (job := _queued(line, cluster))}
    if not cluster:
        gone = {number for number in ids if job_ids.is_federated(number) and number not in jobs}
        gone |= {job.id for job in jobs.values() if job.state == _REVOKED}
        jobs |= {number: job for number, (_, job) in _in_federation(gone, timeout_seconds).items()}
    named = {job_ids.address(name, cluster) for name in ids}
    return {job.id: job for job in jobs.values() if not ids or job.id in named or job.array in named}


def _in_federation(numbers: Collection[str], timeout_seconds: float | None) -> dict[str, tuple[str, Job]]:
    """Find jobs that other clusters of a federation have begun. Returns by number the cluster, and the job there."""
    if not numbers:
        return {}
    which = f"--jobs={','.join(sorted(numbers))}"
    try:
        what = ("--clusters=all", "--states=all", "--array", which, _FORM)
        text = slurm.call("squeue", *what, timeout_seconds=timeout_seconds)
    except Refused:  # no cluster has it any more
        return {}
    jobs, cluster = dict[str, tuple[str, Job]](), ""
    for line in text.splitlines():
        if line.startswith("CLUSTER: "):
            cluster = line.removeprefix("CLUSTER: ").strip()
        elif (job := _queued(line, "")) and not job.waits and job.state != _REVOKED:
            jobs[job.id] = cluster, job
    return jobs


def _queued(line: str, cluster: str) -> Job | None:
    """Read a job in a line of a cluster's queue; None for another line, such as the head of a table."""
    if line.count("|") < 5 or not line.strip()[:1].isdigit():
        return None
    number, state, reason, nodes, times, run_dir = (part.strip() for part in line.split("|", 5))
    time_left, _, started = times.partition(" ")
    return Job(job_ids.address(number, cluster), state, reason, nodes, time_left, run_dir, started)


def accounting(ids: Collection[str], timeout_seconds: float | None = None) -> dict[str, Job]:
    """Ask the accounting for ended jobs that the queue has forgotten; a site without accounting has none.

    Raises:
        Unavailable: SLURM does not answer.
    """
    ended: dict[str, Job] = {}
    for cluster, numbers in job_ids.by_cluster(ids).items():
        what = (
            f"--jobs={','.join(numbers)}",
            "--format=JobID,State,NodeList",
            *job_ids.in_accounting(cluster, numbers),
        )
        try:
            text = slurm.call(
                "sacct", "--allocations", "--noheader", "--parsable2", *what, timeout_seconds=timeout_seconds
            )
        except Refused:
            continue
        rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
        jobs = [Job(job_ids.address(job, cluster), state.partition(" ")[0], nodes=nodes) for job, state, nodes in rows]
        ended |= {job.id: job for job in jobs}
    return ended


def jobs(ids: Collection[str], timeout_seconds: float | None = None) -> dict[str, Job]:
    """Ask the queue for the named jobs, then the accounting; one that neither knows is left out.

    Raises:
        Unavailable: SLURM does not answer.
    """
    queued = queue(ids, timeout_seconds) if ids else {}
    missing = [job for job in ids if job not in queued]
    return {**accounting(missing, timeout_seconds), **queued}


def words(job: str) -> list[str]:
    """Return the words by which a command is told of a job, with the cluster of the federation that has begun it.

    Raises:
        Unavailable: SLURM does not answer.
    """
    number, *place = job_ids.words(job)
    if place or not job_ids.is_federated(number):
        return [number, *place]
    cluster, _ = _in_federation([number], None).get(number, (None, None))
    return [number, *job_ids.on_cluster(cluster)]


def raw_words(job: str) -> list[str]:
    """Return the words as `words` does, with the number of SLURM's own, which for a member of an array is no `12_3`.

    Raises:
        Unavailable, Refused: SLURM does not tell.
    """
    number, *place = words(job)
    if "_" in number:
        number = slurm.call("squeue", "--noheader", f"--jobs={number}", "--format=%A", *place).strip()
    return [number, *place]


def may_requeue(job: str) -> bool:
    """Return whether SLURM would requeue a job. Raises Unavailable, Refused."""
    return not re.search(r"\bRequeue=0\b", slurm.call("scontrol", "show", "job", *words(job), "--oneliner"))


def signal(job: str, name: str) -> None:
    """Send a signal to the tasks of a running job, not to its batch script. Raises Unavailable, Refused."""
    number, *place = words(job)
    targets = _steps(number, place) if "_" in number else [number]
    slurm.call("scancel", "--quiet", f"--signal={name}", *targets, *place)


def _steps(number: str, place: Sequence[str]) -> list[str]:
    """List the steps that run in a member of an array.

    A signal to the member itself reaches it, but as long as other members wait, SLURM has scancel send it again and
    again.
    """
    text = slurm.call("squeue", "--steps", "--noheader", f"--jobs={number}", "--format=%i", *place)
    steps = [word for word in text.split() if re.fullmatch(r"[\d_]+\.\d+", word)]  # not that of the batch script
    if not steps:
        raise Refused(f"squeue: job {number} runs no step")
    return steps


def cancel(job: str) -> None:
    """End a job. Raises Unavailable, Refused."""
    slurm.call("scancel", "--quiet", *words(job))


def requeue(job: str) -> None:
    """Put a job back into the queue, under its id. Raises Unavailable, Refused."""
    slurm.call("scontrol", "requeue", *words(job))


def redirect_dependents(old: str, new: str) -> None:
    """Let this user's jobs that wait for a job wait for another one of its cluster. Raises Unavailable, Refused.

    A waiting array is changed as a whole: SLURM takes no order about `12_[0-3%2]`, as squeue calls it.
    """
    old, (new, *cluster) = job_ids.number(old), job_ids.words(new)
    what = (f"--user={os.getuid()}", "--states=PENDING", "--noheader", "--format=%F|%E", *cluster)
    lines = dict.fromkeys(slurm.call("squeue", *what).splitlines())
    for job, _, dependency in (line.strip().partition("|") for line in lines):
        before = re.sub(r"\([a-z]+\)", "", dependency)  # afterok:12(unfulfilled)
        redirected = re.sub(rf"(?<=:){old}(?![\d_+])", new, before)
        if redirected != before and job != new:
            with contextlib.suppress(Refused):  # it has just begun, or ended; others still wait
                slurm.call("scontrol", "update", f"JobId={job}", f"Dependency={redirected}", *cluster)
