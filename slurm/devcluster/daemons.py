"""Define the daemons of a cluster: their command lines, their environment, where they listen."""

import contextlib
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slurm.devcluster import processes, programs
from slurm.devcluster.directory import Record, Settings, user_name
from slurm.devcluster.errors import ClusterError, Misuse, one_line

READY_SECONDS = 60.0
_GONE_SECONDS = 1.0
"""One look at the processes can miss a daemon while it forks into the background."""
_KEPT_VARIABLES = ("PATH", "HOME", "TZ", "LD_LIBRARY_PATH")
_SET_HOSTNAME = "import os, socket, sys; socket.sethostname(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"


_PORTS = range(20000, 32000, 100)
"""Below the ports that a system hands out by itself."""


@dataclass(frozen=True)
class Daemon:
    """One daemon of the cluster in `root`; it is known by its program and its environment, never by a number."""

    root: Path
    name: str
    command: tuple[str, ...]
    address: tuple[str, int] | Path
    """The address or socket at which the daemon listens once it is ready."""
    node: str | None = None

    def pids(self) -> set[int]:
        """Return the daemon's process, where it lives."""
        return processes.find(marks(self.root, self.node), "slurmd" if self.node else self.name)

    def launch(self) -> None:
        """Start it, and wait until it listens. Raises ClusterError where it does not."""
        with explained(self.root, self.name):
            processes.launch(self.command, _environment(self.root, self.node), _log(self.root, self.name))
            last_seen = time.monotonic()

            def listens() -> bool:
                nonlocal last_seen
                lives = bool(self.pids())
                if lives:
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > _GONE_SECONDS:
                    raise ClusterError("it ended")
                return lives and _answers(self.address)

            processes.wait_for("answer", listens, READY_SECONDS)


def marks(root: Path, node: str | None = None) -> dict[str, str]:
    """Return the variables by which every process of a cluster or of a node is known: daemons, steps and tasks."""
    variables = {"SLURM_CONF": str(root / "etc/slurm.conf")}
    return variables if node is None else {**variables, "SLURMD_NODENAME": node}


def daemons(root: Path, record: Record) -> list[Daemon]:
    """List all daemons, in the order of their start."""
    port, settings = record.port, record.settings
    ordered = [] if settings.beside else [_munged(root)]
    if settings.accounting and not settings.beside:
        slurmdbd = (programs.find_program("slurmdbd"),)
        ordered += [_mariadbd(root), Daemon(root, "slurmdbd", slurmdbd, ("127.0.0.1", port + 1))]
    slurmctld = (programs.find_program("slurmctld"), "-f", str(root / "etc/slurm.conf"))
    ordered.append(Daemon(root, "slurmctld", slurmctld, ("127.0.0.1", port)))
    for index, node in enumerate(settings.node_names):
        ordered.append(_slurmd(root, node, port + 2 + index, settings.own_hostnames))
    return ordered


def make_database(root: Path) -> None:
    """Make MariaDB's files, once; aside, so that what is there is whole."""
    if (root / "db").exists():
        return
    name, aside = "mariadb-install-db", root / "db.new"
    shutil.rmtree(aside, ignore_errors=True)
    command = [
        programs.find_program(name),
        "--no-defaults",
        f"--datadir={aside}",
        f"--user={user_name()}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--skip-name-resolve",
        "--rpm",  # else it changes the owner of a system file
    ]
    with explained(root, name):
        processes.launch(command, _environment(root), _log(root, name))
    aside.rename(root / "db")


@contextlib.contextmanager
def explained(root: Path, name: str) -> Iterator[None]:
    """Let a ClusterError from the block name the daemon, its log, and what it wrote there last."""
    try:
        yield
    except ClusterError as error:
        log = _log(root, name)
        raise ClusterError(f"{name} did not start ({error}): {log}: {_last_line(log)}") from None


def _environment(root: Path, node: str | None = None) -> dict[str, str]:
    """Return a daemon's environment, with nothing of the caller's that could reach a job."""
    kept = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    return {**kept, **marks(root, node), "MYSQL_UNIX_PORT": str(root / "run/mysql.sock")}


def _munged(root: Path) -> Daemon:
    command = (
        programs.find_program("munged"),
        "--force",  # it insists that all users reach its socket, which is for this user alone
        f"--key-file={root}/munge/key",
        f"--seed-file={root}/munge/seed",
        f"--socket={root}/run/munge.sock",
        f"--pid-file={root}/run/munged.pid",
        f"--log-file={root}/log/munged.log",
    )
    return Daemon(root, "munged", command, root / "run/munge.sock")


def _mariadbd(root: Path) -> Daemon:
    setsid = (programs.find_program("setsid"), "--fork")  # it does not go into the background by itself
    command = (*setsid, programs.find_program("mariadbd"), f"--defaults-file={root}/etc/mariadb.conf")
    return Daemon(root, "mariadbd", command, root / "run/mysql.sock")


def _slurmd(root: Path, node: str, port: int, own_hostname: bool) -> Daemon:
    command: tuple[str, ...] = (programs.find_program("slurmd"), "-N", node, "-f", str(root / "etc/slurm.conf"))
    if own_hostname:
        unshare = (programs.find_program("unshare"), "--uts", sys.executable, "-I", "-c", _SET_HOSTNAME)
        command = (*unshare, node, *command)
    return Daemon(root, f"slurmd.{node}", command, (node, port), node)


def _log(root: Path, name: str) -> Path:
    return root / "log" / f"{name}.log"


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").split("\n") if file.exists() else []
    return one_line(next((line for line in reversed(lines) if line.strip()), "it is empty"))


def first_port(settings: Settings, record: Record | None) -> int:
    """Return the first of the cluster's ports: as it is set, as it was before, or of free ones.

    Free ones are chosen at random, so that clusters that start together do not meet.

    Raises:
        Misuse: one that is set is in use.
        ClusterError: there are not so many free ones in a row.
    """
    count = settings.port_count
    if settings.port is not None:
        if (port := taken_port(settings.port, count)) is not None:
            rule = f"needs {count} free ports from there on, and {port} is in use"
            raise Misuse.of("port", settings.port, rule, "choose another, or leave it out")
        return settings.port
    for first in [*([record.port] if record else []), *random.sample(_PORTS, len(_PORTS))]:
        if taken_port(first, count) is None:
            return first
    raise ClusterError(f"no {count} free ports in a row from {_PORTS.start} to {_PORTS.stop}")


def taken_port(first: int, count: int) -> int | None:
    """Return the first port that somebody listens on."""
    for port in range(first, first + count):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemons do
            try:
                probe.bind(("", port))
            except OSError:
                return port
    return None


def _answers(address: tuple[str, int] | Path) -> bool:
    """Return whether somebody listens on a host's port or on a unix socket."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(1)
        return client.connect_ex(str(address) if isinstance(address, Path) else address) == 0
