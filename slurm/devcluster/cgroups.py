"""Use the freezer hierarchy of cgroup v1, in which proctrack/cgroup keeps a node's tasks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from slurm.devcluster.errors import ClusterError
from slurm.devcluster.processes import wait_for


def freezer() -> Path | None:
    """Return where the freezer is mounted and may be written to; None on a machine with cgroup v2 alone."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options = line.split()[:4]
        if kind == "cgroup" and "freezer" in options.split(",") and os.access(place, os.W_OK):
            return Path(place)
    return None


def exists(node: str) -> bool:
    """Return whether a node of this name has folders, from a cluster that runs or from one that has crashed."""
    return any(_folders(node))


def pids(node: str) -> set[int]:
    """Return the processes of a node's jobs, also those that hide from their parent and have no environment."""
    numbers: set[int] = set()
    for folder in _folders(node):
        with contextlib.suppress(OSError):
            numbers |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
    return numbers


def thaw(node: str) -> None:
    """Let a node's frozen tasks go: SLURM freezes them to kill them, and a frozen task cannot die."""
    for folder in _folders(node):
        with contextlib.suppress(OSError):
            (folder / "freezer.state").write_text("THAWED")


def remove(node: str) -> None:
    """Remove a node's folders, which slurmd leaves behind; the kernel needs a moment after the last task's end."""

    def gone() -> bool:
        for folder in _folders(node):
            with contextlib.suppress(OSError):
                folder.rmdir()
        return not any(_folders(node))

    with contextlib.suppress(ClusterError):
        wait_for("empty cgroups", gone, 5)


def _folders(node: str) -> Iterator[Path]:
    """List the folders of a node, the innermost first. The name is SLURM's own and the same in every cluster."""
    top = freezer()
    if top is not None and (top / f"slurm_{node}").is_dir():
        yield from (Path(place) for place, _, _ in os.walk(top / f"slurm_{node}", topdown=False))
