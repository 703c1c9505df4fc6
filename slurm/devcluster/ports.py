"""Find free TCP ports, and tell which ports and sockets answer."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from slurm.devcluster.errors import ClusterError, Misuse

_CANDIDATES = range(20000, 32000, 100)
"""Below the ports that a system hands out by itself."""


def choose(count: int) -> int:
    """Choose the first of so many free ports in a row; at random, so that clusters that start together do not meet."""
    for first in random.sample(_CANDIDATES, len(_CANDIDATES)):
        if taken(first, count) is None:
            return first
    raise ClusterError(f"no {count} free ports in a row from {_CANDIDATES.start} to {_CANDIDATES.stop}")


def check(first: int, count: int) -> None:
    """Raise Misuse unless the ports are free."""
    if (port := taken(first, count)) is not None:
        rule = f"needs {count} free ports from there on, and {port} is in use"
        raise Misuse.of("port", first, rule, "choose another, or leave it out")


def taken(first: int, count: int) -> int | None:
    """Return the first port that somebody listens on."""
    for port in range(first, first + count):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemons do
            try:
                probe.bind(("", port))
            except OSError:
                return port
    return None


def answers(address: tuple[str, int] | Path) -> bool:
    """Return whether somebody listens on a host's port or on a unix socket."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(1)
        return client.connect_ex(str(address) if isinstance(address, Path) else address) == 0
