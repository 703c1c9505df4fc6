"""Call SLURM's commands. No other file does, but sbatch is called by submitit.

Every call has a time limit and no shell. An error of SLURM's is raised in one line.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from shutil import which

from launcher import environment
from moco_dist.errors import UserError

_SILENT = (
    r"[Uu]nable to contact|Connection refused|DNS SRV|could not establish a configuration"
    r"|timed out|Zero Bytes were transmitted|Unexpected message received"  # the controller is busy, or just ended
    r"|[Mm]unge|authentication|Parse error|Unable to (open|locate|establish|process)|configuration file"
)
UNCONFIGURED = (
    "SLURM is installed here, but finds no configuration; "
    "export SLURM_CONF=/path/to/slurm.conf, or log in to a node of the cluster"
)
"""Advice to a person whose shell has forgotten SLURM_CONF."""

PATIENCE = "MOCO_DIST_PATIENCE"
"""Variable that says for how many seconds SLURM's answers are waited for; the option --patience sets it."""
_PATIENCE_SECONDS = 20.0


class Unavailable(Exception):
    """SLURM is not installed here, or its controller does not answer."""


class NotInstalled(Unavailable):
    """SLURM is not installed here."""


class Refused(Exception):
    """SLURM answered with an error."""


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


def seconds(text: str) -> int | None:
    """Read a time of SLURM's, [D-][[H:]M:]S; None for UNLIMITED and its like."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return None
    days, _, clock = text.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return total + 86400 * int(days or 0)
