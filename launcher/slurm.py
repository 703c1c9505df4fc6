"""Call SLURM's commands. No other file does, but sbatch is called by submitit.

Every call has a time limit and no shell. An error of SLURM's is raised in one line.
"""

import os
import re
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    """`12`, or `12_3` for a member of an array."""
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
        """Id of the array that it is a member of; of another job, its own."""
        return self.id.partition("_")[0]

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
        cause = next((line for line in lines if "error:" in line), lines[-1])
        if is_unconfigured(process.stderr):
            raise Unavailable(f"{command[0]}: {UNCONFIGURED}")
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


def queue(ids: Collection[str] = (), timeout_seconds: float | None = None) -> dict[str, Job]:
    """Ask the queue for the named jobs and members of arrays, or all of this user's: live and lately ended ones.

    Raises:
        Unavailable: SLURM does not answer.
    """
    parents = sorted({job.partition("_")[0] for job in ids})
    which = f"--jobs={','.join(parents)}" if parents else f"--user={os.getuid()}"
    form = "--format=%i|%T|%r|%N|%L %S|%k"
    try:
        text = call("squeue", "--states=all", "--array", "--noheader", which, form, timeout_seconds=timeout_seconds)
    except Refused as error:  # one unknown id among several is passed over; a single one is an error
        if "Invalid job id" not in str(error):
            raise Unavailable(str(error)) from None
        return {}
    jobs = map(_queued, (line for line in text.splitlines() if line.count("|") >= 5))
    return {job.id: job for job in jobs if not ids or job.id in ids or job.array in ids}


def _queued(line: str) -> Job:
    """Read a job in a line of the queue."""
    job, state, reason, nodes, times, run_dir = (part.strip() for part in line.split("|", 5))
    time_left, _, started = times.partition(" ")
    return Job(job, state, reason, nodes, time_left, run_dir, started)


def accounting(ids: Collection[str], timeout_seconds: float | None = None) -> dict[str, Job]:
    """Ask the accounting for ended jobs that the queue has forgotten; a site without accounting has none.

    Raises:
        Unavailable: SLURM does not answer.
    """
    if not ids:
        return {}
    what = (f"--jobs={','.join(sorted(ids))}", "--format=JobID,State,NodeList")
    try:
        text = call("sacct", "--allocations", "--noheader", "--parsable2", *what, timeout_seconds=timeout_seconds)
    except Refused:
        return {}
    jobs = (line.split("|") for line in text.splitlines() if line.count("|") == 2)
    return {job: Job(job, state.split()[0] if state else "", nodes=nodes) for job, state, nodes in jobs}


def jobs(ids: Collection[str], timeout_seconds: float | None = None) -> dict[str, Job]:
    """Ask the queue for the named jobs, then the accounting; one that neither knows is left out.

    Raises:
        Unavailable: SLURM does not answer.
    """
    queued = queue(ids, timeout_seconds) if ids else {}
    missing = [job for job in ids if job not in queued]
    return {**accounting(missing, timeout_seconds), **queued}


def lost_nodes(nodes: str, since: float) -> list[str]:
    """List those of a job's nodes that are down, do not answer, or have started anew since then.

    Args:
        nodes: the nodes in SLURM's words, `n[1-3]`.
        since: when the job has started on them, in seconds since the epoch.

    Raises:
        Unavailable, Refused: SLURM does not tell.
    """
    lines = call("scontrol", "show", "node", nodes, "--oneliner").splitlines()
    described = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
    return [words["NodeName"] for words in described if "NodeName" in words and _is_lost(words, since)]


def _is_lost(words: dict[str, str], since: float) -> bool:
    if re.search(r"^DOWN|\*|NOT_RESPONDING", words.get("State", "")):
        return True
    try:
        return time.mktime(time.strptime(words.get("SlurmdStartTime", ""), "%Y-%m-%dT%H:%M:%S")) > since
    except ValueError:  # None, Unknown
        return False


def raw_id(job: str) -> str:
    """Return the id that SLURM itself has for a job, which for a member of an array is no `12_3`.

    Raises:
        Unavailable, Refused: SLURM does not tell.
    """
    return call("squeue", "--noheader", f"--jobs={job}", "--format=%A").strip() if "_" in job else job


def may_requeue(job: str) -> bool:
    """Return whether SLURM would requeue a job. Raises Unavailable, Refused."""
    return not re.search(r"\bRequeue=0\b", call("scontrol", "show", "job", job, "--oneliner"))


def signal(job: str, name: str) -> None:
    """Send a signal to the tasks of a running job, not to its batch script. Raises Unavailable, Refused."""
    call("scancel", "--quiet", f"--signal={name}", job)


def cancel(job: str) -> None:
    """End a job. Raises Unavailable, Refused."""
    call("scancel", "--quiet", job)


def requeue(job: str) -> None:
    """Put a job back into the queue, under its id. Raises Unavailable, Refused."""
    call("scontrol", "requeue", job)


def redirect_dependents(old: str, new: str) -> None:
    """Let this user's jobs that wait for a job wait for another one instead. Raises Unavailable, Refused."""
    lines = call("squeue", f"--user={os.getuid()}", "--states=PENDING", "--noheader", "--format=%i|%E").splitlines()
    for job, _, dependency in (line.strip().partition("|") for line in lines):
        words = re.sub(r"\([a-z]+\)", "", dependency)  # afterok:12(unfulfilled)
        redirected = re.sub(rf"(?<=:){old}(?![\d_+])", new, words)
        if redirected != words and job != new:
            call("scontrol", "update", f"JobId={job}", f"Dependency={redirected}")


def seconds(text: str) -> int | None:
    """Read a time of SLURM's, [D-][[H:]M:]S; None for UNLIMITED and its like."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return None
    days, _, clock = text.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return total + 86400 * int(days or 0)
