"""Define what a cluster is to be like; check, lay out and read the directory that it lives in."""

import contextlib
import fcntl
import json
import os
import pwd
import re
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from string import Template

from slurm.devcluster import processes
from slurm.devcluster.errors import Misuse

FIRST_ADDRESS = 11
PROCTRACKS = ("linuxproc", "cgroup")
_LIMITS = {"nodes": (1, 64), "cpus": (1, 1024), "gpus": (0, 64), "port": (1024, 65400)}
_TEMPLATES = Path(__file__).parent / "conf"
_LONGEST_SOCKET = "/spool/127.0.0.11/127.0.0.11_67043328.4294967291"
"""The path that SLURM appends for the socket of a job's step, with its greatest job and step."""
_SOCKET_BYTES = 107
_FILE = "cluster.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that a cluster is started with.

    Raises:
        Misuse: a value that no cluster can have, or not on this machine.
    """

    nodes: int = 2
    cpus: int = 4
    """CPUs that each node claims to have; the machine may have fewer."""
    gpus: int = 4
    """Fake GPUs of each node: a job gets a real CUDA_VISIBLE_DEVICES, and /dev/null behind it."""
    accounting: bool = True
    """True where there is sacct, which needs slurmdbd and MariaDB."""
    proctrack: str = "linuxproc"
    """The way to know a job's processes: by their parents (linuxproc), or by cgroup, as most clusters do."""
    port: int | None = None
    """First of the ports, one for each daemon; unset, a free range is looked for."""
    preempt_signal: bool = True
    """True where a preempted job gets its own signal (USR2); else it gets SIGTERM."""
    own_hostnames: bool = False
    """True where a job's hostname is its node's name, and not the machine's."""
    name: str = "devcluster"
    """SLURM's name for the cluster, as in `sbatch --clusters`."""
    beside: str | None = None
    """Directory of another cluster whose accounting this one shares, so that commands of one reach the other."""

    def __post_init__(self) -> None:
        for key, (least, most) in _LIMITS.items():
            value = getattr(self, key)
            if value is not None and not least <= value <= most:
                raise Misuse.of(key, value, f"must be from {least} to {most}", "choose another")
        if self.proctrack not in PROCTRACKS:
            raise Misuse.of("proctrack", self.proctrack, "is not known", f"choose {' or '.join(PROCTRACKS)}")
        if self.proctrack == "cgroup" and (os.geteuid() != 0 or processes.freezer() is None):
            rule = "needs root and a freezer of cgroup v1 that may be written to"
            raise Misuse.of("proctrack", "cgroup", rule, "choose linuxproc")
        if self.own_hostnames and os.geteuid() != 0:
            raise Misuse.of("own_hostnames", "true", "needs root", "leave it out")
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,38}", self.name):
            raise Misuse.of("name", self.name, "must be lower-case letters, digits and _", "choose another")
        if self.beside is not None and not (self.accounting and self.proctrack == "linuxproc"):
            rule = "clusters are known to each other by their accounting, and their cgroups have the same names"
            raise Misuse.of("beside", self.beside, rule, "use accounting and linuxproc")

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes: loopback addresses, which resolve on every machine."""
        return [f"127.0.0.{FIRST_ADDRESS + index}" for index in range(self.nodes)]

    @property
    def port_count(self) -> int:
        """Ports in use, from the first one on: slurmctld, slurmdbd, and one for each node."""
        return 2 + self.nodes


@dataclass(frozen=True)
class Record:
    """The settings of a cluster and the first of its ports, which its commands read."""

    settings: Settings
    port: int


def checked(directory: Path | str) -> Path:
    """Return the directory by its real name, where a cluster can live in it.

    Raises:
        Misuse: another user's, something else's, or a name that SLURM or a socket cannot take.
    """
    root = Path(directory).absolute().resolve()
    longest = _SOCKET_BYTES - len(_LONGEST_SOCKET)
    if len(os.fsencode(root)) > longest:
        raise Misuse.of("DIR", root, f"must have at most {longest} bytes, for its sockets", "choose a shorter path")
    if not re.fullmatch(r"[\w./+@-]+", str(root), re.ASCII):
        rule = "SLURM's files take only letters, digits and . _ + @ - / in a path"
        raise Misuse.of("DIR", root, rule, "choose another name")
    try:
        if root.exists():
            _check_existing(root)
    except PermissionError:
        raise Misuse.of("DIR", root, "cannot be reached", "choose a directory of your own") from None
    return root


def _check_existing(root: Path) -> None:
    if not root.is_dir():
        raise Misuse.of("DIR", root, "is no directory", "choose another name")
    if root.stat().st_uid != os.geteuid():
        raise Misuse.of("DIR", root, "belongs to another user", "choose a directory of your own")
    if not os.access(root, os.W_OK | os.X_OK):
        raise Misuse.of("DIR", root, "cannot be written to", "choose another, or change its mode")
    if any(root.iterdir()) and not (root / _FILE).exists():
        raise Misuse.of("DIR", root, "holds other files", "choose a new or an empty directory")


def make(root: Path) -> None:
    """Make the directory, for its user alone. Raises Misuse where that is not allowed."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
    except OSError as error:
        raise Misuse.of("DIR", root, f"cannot be made ({error.strerror})", "choose another directory") from None


def read(root: Path) -> Record | None:
    """Read the record of the cluster; None where there never was one."""
    try:
        record = json.loads((root / _FILE).read_text())
        names = {field.name for field in fields(Settings)}  # what another version wrote besides is dropped
        values = {key: value for key, value in record["settings"].items() if key in names}
        return Record(Settings(**values), int(record["port"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise Misuse.of("DIR", root, f"its {_FILE} is damaged", "remove the directory") from None


def write(root: Path, record: Record) -> None:
    """Write the record of the cluster, and lay out its files."""
    aside = root / f".{_FILE}"
    aside.write_text(json.dumps(asdict(record), indent=1) + "\n")
    aside.replace(root / _FILE)
    spool = [f"spool/{name}" for name in record.settings.node_names]
    for name in ("etc", "run", "log", "state", "dev", "munge", *spool):
        (root / name).mkdir(parents=True, exist_ok=True)
    for index in range(record.settings.gpus):
        with contextlib.suppress(FileExistsError):
            (root / f"dev/nvidia{index}").symlink_to("/dev/null")
    _write_private(root / "munge/key", os.urandom(1024), keep=True)
    for name, text in configuration(root, record).items():
        _write_private(root / "etc" / name, text.encode())


def _write_private(file: Path, content: bytes, *, keep: bool = False) -> None:
    """Write a file that only its user may read; slurmdbd and munge ask for that."""
    if not (keep and file.exists()):
        file.touch(0o600)
        file.write_bytes(content)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Let one command at a time change a cluster; the others wait. The lock ends with the process that holds it."""
    with (root / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def accounting(root: Path, record: Record) -> tuple[Path, int]:
    """Return the directory and the first port of the cluster whose munged and slurmdbd this one uses.

    Raises:
        Misuse: the directory that it is beside holds no such cluster.
    """
    if record.settings.beside is None:
        return root, record.port
    other = checked(record.settings.beside)
    first = read(other)
    if first is None or first.settings.beside or not first.settings.accounting or other == root:
        fix = "name the directory of one that has its own accounting"
        raise Misuse.of("beside", other, "holds no cluster with accounting of its own", fix)
    if first.settings.name == record.settings.name:
        raise Misuse.of("name", first.settings.name, "is that of the cluster beside", "choose another")
    return other, first.port


def user_name() -> str:
    """Return the name of the user who owns the cluster. Raises Misuse where the system knows none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        rule = "has no name here, and SLURM wants one"
        raise Misuse.of("user", os.geteuid(), rule, "be a user of /etc/passwd") from None


def configuration(root: Path, record: Record) -> dict[str, str]:
    """Fill in the templates in `conf/`. Returns the text of each file of the configuration by its name.

    A line that is for some clusters alone begins with $if_..., which is a comment's sign in the others.
    """
    settings, port = record.settings, record.port
    home, first_port = accounting(root, record)
    last = FIRST_ADDRESS + settings.nodes - 1
    switches = {"accounting": settings.accounting, "preempt_signal": settings.preempt_signal, "gpus": settings.gpus}
    values = {
        "root": root,
        "name": settings.name,
        "munge_socket": home / "run/munge.sock",
        "user": user_name(),
        "host": socket.gethostname().partition(".")[0],
        "port": port,
        "slurmdbd_port": first_port + 1,
        "first_node_port": port + 2,
        "last_port": port + 1 + settings.nodes,
        "nodes": f"127.0.0.[{FIRST_ADDRESS}-{last}]",
        "cpus": settings.cpus,
        "gres": f"Gres=gpu:{settings.gpus}" if settings.gpus else "",
        "last_gpu": settings.gpus - 1,
        "proctrack": settings.proctrack,
        "storage": "slurmdbd" if settings.accounting else "none",
        "cgroups": (processes.freezer() or Path("/sys/fs/cgroup/freezer")).parent,
        **{f"if_{name}": "" if on else "# " for name, on in switches.items()},
    }
    return {file.name: Template(file.read_text()).substitute(values) for file in _TEMPLATES.glob("*.conf")}
