"""One job alone writes to a run directory, by a lease that holds on NFS too (no flock)."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from moco_dist.errors import UserError
from moco_dist.files import read_object, write_text
from moco_dist.run.paths import RunPaths

SECONDS = 30.0
"""A lease that its owner on another host has not renewed for so long is free."""


class Lost(Exception):
    """Another job has taken the lease."""


class Lease:
    """A lease is the right to write to a run directory: a file `lease.json` that a thread renews until `release`.

    The owner is named by host, process and that process's start time. A dead owner on this host is found at once; one
    on another host, or in another container of this one, is waited for, in case it still renews.

    Raises:
        UserError: a live job holds the directory.
    """

    def __init__(self, run_dir: Path, *, seconds: float = SECONDS) -> None:
        self._file, self._seconds = RunPaths(run_dir).lease, seconds
        self.token = secrets.token_hex(8)
        self._mine = {**this_process(), "token": self.token}
        self._lost = False
        while not self._create():
            self._take_from_the_dead()
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """Raise Lost when another job has taken the lease, which it may when this one has not renewed it in time."""
        if self._lost:
            raise Lost(f"{self._file} belongs to another job now; this one ends without writing")

    def release(self) -> None:
        """Give the directory back."""
        if not self._released.is_set():
            self._released.set()
            self._renewer.join()
            if not self._lost:
                self._file.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Make the file, and return whether that worked; a hard link is atomic on NFS, and the file appears whole."""
        aside = self._file.with_name(f".lease.{self.token}")
        write_text(aside, self._text())
        try:
            os.link(aside, self._file)
            return True
        except FileExistsError:
            return False
        finally:
            aside.unlink()

    def _take_from_the_dead(self) -> None:
        """Remove a dead owner's file. Raises UserError for a live one's."""
        owner = read_object(self._file)
        if not self._file.exists():
            return
        if _is_here(owner):
            alive = process_start(int(owner["pid"])) == owner["started"]
        else:
            alive = self._file.is_file() and self._renewed_within(owner)
        if alive:
            rule = f"a job on {owner.get('host')} (process {owner.get('pid')}) is writing to it"
            fix = "wait for it, stop it, or choose another run.name"
            raise UserError.of("run.dir", self._file.parent, rule, fix)
        # Of several that find the owner dead, one succeeds in moving its file away.
        grave = self._file.with_name(f".lease.{self.token}.dead")
        with contextlib.suppress(FileNotFoundError):
            self._file.rename(grave)
            if read_object(grave).get("token") == owner.get("token"):
                grave.unlink()
            else:  # it was renewed or replaced meanwhile: not the dead one's
                os.link(grave, self._file)
                grave.unlink()

    def _renewed_within(self, owner: dict[str, Any]) -> bool:
        """Return whether another host's file changes before its lease runs out; clocks are not compared."""
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._seconds / 10))
            now = read_object(self._file)
            if now != owner:
                return bool(now)
        return False

    def _renew(self) -> None:
        while not self._released.wait(self._seconds / 3):
            with contextlib.suppress(OSError):  # a full or absent disk: the lease is kept alive again when it can be
                if self._is_taken():
                    self._lost = True
                    return
                write_text(self._file, self._text())

    def _is_taken(self) -> bool:
        """Return whether the file is another job's, or gone. Raises OSError where the disk does not tell."""
        try:
            self._file.stat()  # Path.exists would take any trouble with the disk for an answer
        except FileNotFoundError:
            return True
        return bool(read_object(self._file).get("token", self.token) != self.token)

    def _text(self) -> str:
        return json.dumps({**self._mine, "renewed": time.time()}) + "\n"


def token(run_dir: Path) -> str:
    """Return the token of the job that has the lease of a run directory; "" where nobody has it, or nothing tells."""
    return str(read_object(RunPaths(run_dir).lease).get("token", ""))


def held_by(run_dir: Path) -> str:
    """Name the process that writes to a run directory; "" for none. An owner on another host lives while it renews."""
    file = RunPaths(run_dir).lease
    owner = read_object(file)
    try:
        age = time.time() - file.stat().st_mtime
        host, pid, started = str(owner["host"]), int(owner["pid"]), str(owner["started"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return ""
    alive = process_start(pid) == started if _is_here(owner) else age < 2 * SECONDS
    return f"process {pid} on {host}" if alive else ""


def process_start(pid: int) -> str:
    """Return the boot and clock tick at which a process of this host began; "" where it is gone or a zombie."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot} {fields[19]}"


def this_process() -> dict[str, Any]:
    """Return what a lease tells of this process: its host, number and start, and the namespace of the number."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    started = process_start(os.getpid())
    return {"host": socket.gethostname(), "namespace": namespace, "pid": os.getpid(), "started": started}


def _is_here(owner: dict[str, Any]) -> bool:
    """Return whether this process sees the owner's: hosts may share a name, and containers that of their host.

    A lease of an earlier revision has no namespace, and is taken for one of this one.
    """
    mine = this_process()
    boots = [str(process.get("started", "")).partition(" ")[0] for process in (owner, mine)]
    namespace = owner.get("namespace", mine["namespace"])
    return (owner.get("host"), boots[0], namespace) == (mine["host"], boots[1], mine["namespace"])
