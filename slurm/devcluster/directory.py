"""Check, lay out and read the directory of a cluster."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from slurm.devcluster import settings
from slurm.devcluster.errors import Misuse
from slurm.devcluster.settings import Settings

_LONGEST_SOCKET = "/spool/127.0.0.11/127.0.0.11_67043328.4294967291"
"""What SLURM appends for the socket of a job's step, with its greatest job and step."""
_SOCKET_BYTES = 107
_FILE = "cluster.json"


@dataclass(frozen=True)
class Record:
    """What the commands of a cluster know of it: its settings, and the first of its ports."""

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
        return Record(settings.from_record(record["settings"]), int(record["port"]))
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
    for name, text in settings.configuration(root, record.settings, record.port).items():
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
