"""Call SLURM's commands. No other file does, but sbatch is called by submitit.

Every call has a time limit and no shell. An error of SLURM's is raised in one line.
"""

import os
import re
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from launcher import environment, job_ids
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
UNCONFIGURED = (
    "SLURM is installed here, but finds no configuration; "
    "export SLURM_CONF=/path/to/slurm.conf, or log in to a node of the cluster"
)
"""What to tell a person whose shell has forgotten SLURM_CONF."""

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
    return _call(command, timeout_seconds).stdout


def _call(command: Sequence[str], timeout_seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands, as `call` does. Returns the process, which has ended well."""
    seconds = patience_seconds() if timeout_seconds is None else timeout_seconds
    env = {**environment.for_slurm(), "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
    if (
        (conf := env.get("SLURM_CONF")) and installed(command[0]) and not Path(conf).exists()
    ):  # SLURM tries for a minute
        raise Unavailable(
            f"{command[0]}: SLURM_CONF = {conf}: no such file; export the path of the cluster's slurm.conf"
        )
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
        if is_unconfigured(process.stderr):
            raise Unavailable(f"{command[0]}: {UNCONFIGURED}")
        own = (line for word in ("error:", f"{command[0]}: ") for line in lines if word in line)
        cause = next(own, lines[-1])
        if re.search(_SILENT, process.stderr):
            raise Unavailable(f"{command[0]}: the SLURM controller does not answer ({cause.strip()})")
        raise Refused(f"{command[0]}: {cause.strip()}")
    return process


def expected_start(script: Path) -> str:
    """Return when SLURM would start a batch script, in local time, `2026-11-27T21:00:00`; empty where it does not say.

    Raises:
        Refused: it would not take it.
        Unavailable: SLURM does not answer.
    """
    process = _call(["sbatch", "--test-only", str(script)])
    match = re.search(r"to start at (\S+)", process.stderr + process.stdout)
    return match[1] if match else ""


def installed(command: str) -> bool:
    """Return whether one of SLURM's commands is installed here."""
    return which(command) is not None


def is_unconfigured(text: str) -> bool:
    """Return whether it says that a command has found neither a slurm.conf nor a server that has one."""
    return re.search("[Cc]ould not establish a configuration source|DNS SRV lookup failed", text) is not None


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
    form = "--format=%i|%T|%r|%N|%L %S|%k"
    try:
        what = ("--states=all", "--array", "--noheader", which, form, *job_ids.on_cluster(cluster))
        text = call("squeue", *what, timeout_seconds=timeout_seconds)
    except Refused as error:  # one unknown id among several is passed over; a single one is an error
        if "Invalid job id" not in str(error):
            raise Unavailable(str(error)) from None
        return {}
    jobs = [_queued(line, cluster) for line in text.splitlines() if line.count("|") >= 5]
    named = {job_ids.address(name, cluster) for name in ids}
    return {job.id: job for job in jobs if not ids or job.id in named or job.array in named}


def _queued(line: str, cluster: str) -> Job:
    """Read a job in a line of a cluster's queue."""
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
        what = (f"--jobs={','.join(numbers)}", "--format=JobID,State,NodeList", *job_ids.on_cluster(cluster))
        try:
            text = call("sacct", "--allocations", "--noheader", "--parsable2", *what, timeout_seconds=timeout_seconds)
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


def raw_id(job: str) -> str:
    """Return the number that SLURM itself has for a job, which for a member of an array is no `12_3`.

    Raises:
        Unavailable, Refused: SLURM does not tell.
    """
    number, *place = job_ids.words(job)
    if "_" not in number:
        return number
    return call("squeue", "--noheader", f"--jobs={number}", "--format=%A", *place).strip()


def may_requeue(job: str) -> bool:
    """Return whether SLURM would requeue a job. Raises Unavailable, Refused."""
    return not re.search(r"\bRequeue=0\b", call("scontrol", "show", "job", *job_ids.words(job), "--oneliner"))


def signal(job: str, name: str) -> None:
    """Send a signal to the tasks of a running job, not to its batch script. Raises Unavailable, Refused."""
    call("scancel", "--quiet", f"--signal={name}", *job_ids.words(job))


def cancel(job: str) -> None:
    """End a job. Raises Unavailable, Refused."""
    call("scancel", "--quiet", *job_ids.words(job))


def requeue(job: str) -> None:
    """Put a job back into the queue, under its id. Raises Unavailable, Refused."""
    call("scontrol", "requeue", *job_ids.words(job))


def redirect_dependents(old: str, new: str) -> None:
    """Let this user's jobs that wait for a job wait for another one of its cluster. Raises Unavailable, Refused."""
    old, (new, *cluster) = job_ids.number(old), job_ids.words(new)
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
