"""Call SLURM's commands. No other file does, but sbatch is called by submitit.

Every call has a time limit and no shell. An error of SLURM's is raised in one line.
"""

import functools
import os
import re
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from shutil import which

from launcher import environment
from moco_dist.errors import UserError

_WAITS = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
_RUNS = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}
)

_SILENT = (
    r"[Uu]nable to contact|Connection refused|DNS SRV|could not establish a configuration"
    r"|timed out|Zero Bytes were transmitted|Unexpected message received"  # the controller is busy, or just ended
    r"|[Mm]unge|authentication|Parse error|Unable to (open|locate|establish|process)|configuration file"
)


PATIENCE = "MOCO_DIST_PATIENCE"
"""Variable that says for how many seconds SLURM's answers are waited for; the option --patience sets it."""
_PATIENCE_SECONDS = 20.0


NEVER = "DependencyNeverSatisfied"
"""Why a job waits that can never start."""


class Unavailable(Exception):
    """SLURM is not installed here, or its controller does not answer."""


class NotInstalled(Unavailable):
    """SLURM is not installed here."""


class Refused(Exception):
    """SLURM answered with an error."""


@dataclass(frozen=True)
class Job:
    """A job, or one member of an array, as the queue or the accounting has it."""

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

    @property
    def waits(self) -> bool:
        return self.state in _WAITS

    @property
    def live(self) -> bool:
        """Whether it waits or runs."""
        return self.state in _WAITS | _RUNS


def patience_seconds(usual: float = _PATIENCE_SECONDS) -> float:
    """Return how long SLURM's answers are waited for, as the user has said or as usual. Raises UserError."""
    text = os.environ.get(PATIENCE, "")
    if text and not re.fullmatch(r"\d{1,4}(\.\d+)?", text):
        raise UserError.of(PATIENCE, text, "must be a number of seconds", "use --patience 60")
    return float(text or usual) or usual


def call(*command: str, timeout_seconds: float | None = None) -> str:
    """Run one of SLURM's commands.

    Args:
        command: its words.
        timeout_seconds: how long it may take; None: as long as the user's patience lasts.

    Returns:
        Its standard output.

    Raises:
        Unavailable: it is not installed, or there was no answer in time.
        Refused: it failed; the error's first line.
    """
    seconds = patience_seconds() if timeout_seconds is None else timeout_seconds
    env = {**environment.for_slurm(), "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
    try:
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=seconds, env=env
        )
    except (FileNotFoundError, PermissionError):
        fix = "log in to a node of the cluster, or use --local"
        raise NotInstalled(f"{command[0]} is not installed here; {fix}") from None
    except subprocess.TimeoutExpired:
        fix = "is slurmctld up (scontrol ping)? --patience waits longer"
        raise Unavailable(f"{command[0]}: no answer in {seconds:g} s; {fix}") from None
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if line.strip()] or [f"exit status {process.returncode}"]
        own = (line for word in ("error:", f"{command[0]}: ") for line in lines if word in line)
        cause = next(own, lines[-1])
        if re.search(_SILENT, process.stderr):
            raise Unavailable(f"{command[0]}: the SLURM controller does not answer ({cause.strip()})")
        raise Refused(f"{command[0]}: {cause.strip()}")
    return process.stdout


def address(job: str, cluster: str | None) -> str:
    """Return what a job is called here: its number, and behind an @ the cluster, where one is named."""
    return f"{job}@{cluster}" if cluster else job


def number(job: str) -> str:
    """Return what a job is called on its own cluster: `12` or `12_3`."""
    return job.partition("@")[0]


def on_cluster(cluster: str | None) -> list[str]:
    """Return the option that has SLURM's commands ask a cluster; none where that is the one that this job runs on."""
    return [f"--clusters={cluster}"] if cluster and cluster != _own_cluster() else []


def _own_cluster() -> str | None:
    return os.environ.get("SLURM_CLUSTER_NAME")


def _words(job: str) -> list[str]:
    """Return the words by which a command is told of a job."""
    name, _, cluster = job.partition("@")
    return [name, *on_cluster(cluster)]


def _by_cluster(ids: Collection[str]) -> dict[str, list[str]]:
    """Sort jobs by their clusters, under their numbers there."""
    clusters = sorted({job.partition("@")[2] for job in ids})
    return {cluster: sorted(number(job) for job in ids if job.partition("@")[2] == cluster) for cluster in clusters}


def queue(
    ids: Collection[str] = (), timeout_seconds: float | None = None, cluster: str | None = None
) -> dict[str, Job]:
    """Ask the queue for the named jobs, or all of this user's: waiting, running and lately ended ones.

    Raises:
        Unavailable: SLURM does not answer.
    """
    queued: dict[str, Job] = {}
    for place, numbers in (_by_cluster(ids) or {cluster or "": []}).items():
        queued |= _queue(numbers, timeout_seconds, place)
    return queued


def _queue(ids: Collection[str], timeout_seconds: float | None, cluster: str) -> dict[str, Job]:
    """Ask the queue of one cluster, as `queue` does, for jobs under their numbers there."""
    parents = sorted({job.partition("_")[0] for job in ids})
    which = f"--jobs={','.join(parents)}" if parents else f"--user={os.getuid()}"
    form = "--format=%i|%T|%r|%N|%L|%k"
    try:
        what = ("--states=all", "--array", "--noheader", which, form, *on_cluster(cluster))
        text = call("squeue", *what, timeout_seconds=timeout_seconds)
    except Refused as error:  # one unknown id among several is passed over; a single one is an error
        if "Invalid job id" not in str(error):
            raise Unavailable(str(error)) from None
        return {}
    rows = ([part.strip() for part in line.split("|", 5)] for line in text.splitlines() if line.count("|") >= 5)
    jobs = [Job(address(name, cluster), *rest) for name, *rest in rows if not ids or name in ids]
    return {job.id: job for job in jobs}


def accounting(ids: Collection[str], timeout_seconds: float | None = None) -> dict[str, Job]:
    """Ask the accounting for ended jobs that the queue has forgotten; a site without accounting has none.

    Raises:
        Unavailable: SLURM does not answer.
    """
    ended: dict[str, Job] = {}
    for cluster, numbers in _by_cluster(ids).items():
        what = (f"--jobs={','.join(numbers)}", "--format=JobID,State,NodeList", *on_cluster(cluster))
        try:
            text = call("sacct", "--allocations", "--noheader", "--parsable2", *what, timeout_seconds=timeout_seconds)
        except Refused:
            continue
        rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
        jobs = [Job(address(job, cluster), state.partition(" ")[0], nodes=nodes) for job, state, nodes in rows]
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


def may_requeue(job: str) -> bool:
    """Return whether SLURM would requeue a job. Raises Unavailable, Refused."""
    return not re.search(r"\bRequeue=0\b", call("scontrol", "show", "job", *_words(job), "--oneliner"))


def signal(job: str, name: str) -> None:
    """Send a signal to the tasks of a running job, not to its batch script. Raises Unavailable, Refused."""
    call("scancel", "--quiet", f"--signal={name}", *_words(job))


def cancel(job: str) -> None:
    """End a job. Raises Unavailable, Refused."""
    call("scancel", "--quiet", *_words(job))


def requeue(job: str) -> None:
    """Put a job back into the queue, under its id. Raises Unavailable, Refused."""
    call("scontrol", "requeue", *_words(job))


def redirect_dependents(old: str, new: str) -> None:
    """Let this user's jobs that wait for a job wait for another one of its cluster. Raises Unavailable, Refused."""
    old, (new, *cluster) = number(old), _words(new)
    what = (f"--user={os.getuid()}", "--states=PENDING", "--noheader", "--format=%i|%E", *cluster)
    lines = call("squeue", *what).splitlines()
    for job, _, dependency in (line.strip().partition("|") for line in lines):
        words = re.sub(r"\([a-z]+\)", "", dependency)  # afterok:12(unfulfilled)
        redirected = re.sub(rf"(?<=:){old}(?![\d_+])", new, words)
        if redirected != words and job != new:
            call("scontrol", "update", f"JobId={job}", f"Dependency={redirected}", *cluster)


def seconds(text: str) -> int | None:
    """Read a time of SLURM's, [D-][[H:]M:]S; None for UNLIMITED and its like."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return None
    days, _, clock = text.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return total + 86400 * int(days or 0)


class Answers:
    """Collect SLURM's answers about jobs, all within a time limit; once it has not answered, it is not asked again."""

    def __init__(self, timeout_seconds: float | None = None) -> None:
        seconds = patience_seconds() if timeout_seconds is None else timeout_seconds
        self._deadline = time.monotonic() + seconds
        self._own: dict[str, Job] | None = None
        self.error = ""
        """Why SLURM did not answer; empty while it does."""

    def own_jobs(self, cluster: str | None = None) -> Collection[Job]:
        """Return this user's jobs in the queue; none, and no error, where there is no SLURM."""
        self._own = self._ask(functools.partial(queue, cluster=cluster), ()) if which("squeue") else {}
        return self._own.values()

    def queued(self, ids: Collection[str]) -> dict[str, Job]:
        """Return those of the named jobs that the queue has."""
        if self._own is not None and not self.error:
            own = {job: self._own[job] for job in ids if job in self._own}
            elsewhere = [job for job in ids if "@" in job]
            return own | (self._ask(queue, elsewhere) if elsewhere else {})
        return self._ask(queue, ids) if ids else {}

    def accounted(self, ids: Collection[str]) -> dict[str, Job]:
        """Return those of the named jobs that the accounting has."""
        return self._ask(accounting, ids) if which("sacct") else {}

    def _ask(
        self, question: Callable[[Collection[str], float], dict[str, Job]], ids: Collection[str]
    ) -> dict[str, Job]:
        if self.error:
            return {}
        try:
            return question(ids, max(0.1, round(self._deadline - time.monotonic(), 1)))
        except Unavailable as error:
            self.error = str(error)
            return {}
