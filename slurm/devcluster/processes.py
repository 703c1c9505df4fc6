"""Start processes with nothing of the caller's, find them by their environment or cgroup, end them for certain.

A cgroup is one of the freezer hierarchy of cgroup v1, in which proctrack/cgroup keeps a node's tasks.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from slurm.devcluster.errors import ClusterError, one_line

_POLL_SECONDS = 0.05
_KILL_SECONDS = 10.0
_LAUNCH_SECONDS = 60.0


def launch(command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Start a program that becomes a daemon; it may hold no pipe of the caller's, so it writes to its log.

    Raises:
        ClusterError: it refused at once, or does not go into the background.
    """
    with log.open("ab") as output:
        try:
            done = subprocess.run(
                command,
                cwd=log.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                timeout=_LAUNCH_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"busy for {_LAUNCH_SECONDS:g} s") from None
    if done.returncode:
        raise ClusterError(f"exit status {done.returncode}")


def call(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> str:
    """Return what a client command prints. Raises ClusterError where it fails or takes too long."""
    shown = one_line(" ".join(command))
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{shown}: no answer within {seconds:g} s") from None
    if done.returncode:
        raise ClusterError(f"{shown}: exit status {done.returncode}: {one_line(done.stderr or done.stdout)}")
    return done.stdout


def find(variables: Mapping[str, str], *programs: str) -> set[int]:
    """Find the processes whose environment has these variables and, where named, that run one of these programs.

    A zombie has no environment and is not found; nor is this process itself.
    """
    entries = {f"{key}={value}".encode() for key, value in variables.items()}
    pids = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            if programs and (folder / "comm").read_text().strip() not in programs:
                continue
            if entries <= set((folder / "environ").read_bytes().split(b"\0")):
                pids.add(int(folder.name))
    return pids - {os.getpid()}


def with_descendants(pids: set[int]) -> set[int]:
    """Return these processes and all that came from them: a task may have cleared its environment."""
    children: dict[int, set[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), set()).add(int(folder.name))
    family, fresh = set(pids), set(pids)
    while fresh:
        fresh = {child for pid in fresh for child in children.get(pid, ())} - family
        family |= fresh
    return family - {os.getpid()}


def kill(find_them: Callable[[], set[int]]) -> None:
    """Send SIGKILL to all that is found, until nothing is; stopped first, so that none sees another end.

    Raises:
        ClusterError: one of them does not end.
    """
    signal_all(find_them(), signal.SIGSTOP)
    deadline = time.monotonic() + _KILL_SECONDS
    clean_looks = 0
    while clean_looks < 2:  # one look can miss a process that forks and ends meanwhile
        pids = find_them()
        clean_looks = 0 if pids else clean_looks + 1
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {sorted(pids)} do not end on SIGKILL")
        signal_all(pids, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def end(find_them: Callable[[], set[int]], grace_seconds: float) -> None:
    """Send SIGTERM to all that is found, and SIGKILL to what is left after a while."""
    signal_all(find_them(), signal.SIGTERM)
    with contextlib.suppress(ClusterError):
        wait_for("end", lambda: not find_them(), grace_seconds)
        return
    kill(find_them)


def signal_all(pids: set[int], number: signal.Signals) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_for(what: str, condition: Callable[[], bool], timeout_seconds: float) -> None:
    """Wait until a condition holds. Raises ClusterError when that takes too long."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"no {what} within {timeout_seconds:g} s")
        time.sleep(_POLL_SECONDS)


def freezer() -> Path | None:
    """Return where the freezer is mounted and may be written to; None on a machine with cgroup v2 alone."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options = line.split()[:4]
        if kind == "cgroup" and "freezer" in options.split(",") and os.access(place, os.W_OK):
            return Path(place)
    return None


def cgroup_exists(node: str) -> bool:
    """Return whether a node of this name has folders, from a cluster that runs or from one that has crashed."""
    return any(_cgroup_folders(node))


def cgroup_pids(node: str) -> set[int]:
    """Return the processes of a node's jobs, also those that hide from their parent and have no environment."""
    numbers: set[int] = set()
    for folder in _cgroup_folders(node):
        with contextlib.suppress(OSError):
            numbers |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
    return numbers


def thaw_cgroup(node: str) -> None:
    """Let a node's frozen tasks go: SLURM freezes them to kill them, and a frozen task cannot die."""
    for folder in _cgroup_folders(node):
        with contextlib.suppress(OSError):
            (folder / "freezer.state").write_text("THAWED")


def remove_cgroup(node: str) -> None:
    """Remove a node's folders, which slurmd leaves behind; the kernel needs a moment after the last task's end."""

    def gone() -> bool:
        for folder in _cgroup_folders(node):
            with contextlib.suppress(OSError):
                folder.rmdir()
        return not any(_cgroup_folders(node))

    with contextlib.suppress(ClusterError):
        wait_for("empty cgroups", gone, 5)


def _cgroup_folders(node: str) -> Iterator[Path]:
    """List the folders of a node, the innermost first. The name is SLURM's own and the same in every cluster."""
    top = freezer()
    if top is not None and (top / f"slurm_{node}").is_dir():
        yield from (Path(place) for place, _, _ in os.walk(top / f"slurm_{node}", topdown=False))
