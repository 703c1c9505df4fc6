"""Check a node before its ranks start, within a second: its GPUs, its memory, and a write to the run directory."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from launcher.cluster import Profile
from launcher.job import failure, notify
from launcher.record import Launch
from moco_dist.errors import UserError
from moco_dist.ranks import host_memory

if TYPE_CHECKING:
    from launcher.job.start import Start

_BYTES = 2**20
_DRIVER = Path("/proc/driver/nvidia/gpus")
"""A folder for each GPU that the driver knows, also for one that does not answer any more."""
_UNTIL_ENDED_SECONDS = 120.0
"""A job that SLURM has requeued is ended within this time."""


class BadNode(Exception):
    """A node is not fit for the run; the message says why in one line."""


def check(launch: Launch, profile: Profile, node: str) -> str:
    """Check this node.

    Args:
        launch: the run's record.
        profile: what the job has asked for.
        node: the node's name.

    Returns:
        What the node has, in words.

    Raises:
        BadNode: something is missing or broken.
    """
    return ", ".join(filter(None, [_gpus(launch, profile), _memory(profile), _write(launch.folder, node)]))


def end_unfit(start: Start, cause: str) -> NoReturn:
    """End a start of the job whose node is not fit for the run, and have the job requeued: another node may be.

    After three such starts in vain the run is given up.
    """
    name = start.hostnames[start.node]
    fault = f"node {name} is not fit: {cause}"
    start.say(fault)
    try:
        failure.note(start.launch, start.job, start.restart, fault, bad_nodes=[name])
    except OSError:  # it could ask for starts without end, for nobody would count them: the first task does
        raise SystemExit(1) from None
    if start.launch.stands_still(start.job):
        start.say(start.launch.give_up())
        notify.tell(start.launch, start.job, "failure", "end", last=True)
    else:
        notify.tell(start.launch, start.job, "failure", reason=fault, last=True)
        while start.requeue():
            time.sleep(_UNTIL_ENDED_SECONDS)
    raise SystemExit(1)


def _gpus(launch: Launch, profile: Profile) -> str:
    """Count the GPUs that torch can use, unless the run is one for the CPU."""
    try:
        device = launch.config().device.type
    except UserError:  # the ranks will tell
        return ""
    if device == "cpu":
        return ""
    import torch

    if not torch.backends.cuda.is_built():
        return ""
    count, needed = torch.cuda.device_count(), profile.gpus_per_node
    driver = len(list(_DRIVER.iterdir())) if _DRIVER.is_dir() else 0
    if count < needed and (device == "cuda" or driver >= needed):  # auto: where there are too few, the CPU is meant
        raise BadNode(f"{count} of {needed} GPUs can be used")
    return f"{count} GPUs"


def _memory(profile: Profile) -> str:
    """Read how much memory the node has, and how much of it is free."""
    try:
        total, free = (size / 2**30 for size in host_memory.total_and_available())
    except OSError:
        return ""
    if profile.memory_gib and total < 0.95 * profile.memory_gib:  # firmware keeps some
        raise BadNode(f"it has {total:.0f} GiB of memory, {profile.memory_gib} were asked for")
    return f"{free:.0f} of {total:.0f} GiB of memory free"


def _write(folder: Path, node: str) -> str:
    """Write a file, and read it back. A full disk is no fault of the node's, and the run may do without."""
    file, content, began = folder / f".check-{node}-{os.getpid()}", os.urandom(_BYTES), time.monotonic()
    try:
        with file.open("wb") as written:
            written.write(content)
            os.fsync(written.fileno())
        if file.read_bytes() != content:
            raise BadNode(f"what it writes to {folder} reads back as something else")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"nothing can be written to {folder}: {error.strerror}"
        raise BadNode(f"it cannot write to {folder}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
    return f"1 MiB written in {time.monotonic() - began:.2f} s"
