"""The run directory as one job writes it: its lease, its config, its status."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

from moco_dist import __version__, config, files, packages
from moco_dist.config import Config
from moco_dist.errors import UserError
from moco_dist.run import status
from moco_dist.run.lease import Lease


class RunDir:
    """A run directory. Nothing is written before `open`, and by rank 0 alone.

    Args:
        path: of the directory.
        writes: whether this rank does.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self._writes = path, writes
        self.ours = False
        """Whether this job has the lease; on every rank."""
        self._lease: Lease | None = None

    def open(self) -> None:
        """Make the directory, private to its user, and take the lease.

        Raises:
            UserError: it cannot be written, or a live job writes to it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lease = Lease(self.path)
        except OSError as error:
            raise UserError.of("run.dir", self.path, f"cannot be written: {error.strerror}", "choose another") from None

    def record(self, run: Config) -> None:
        """Write the resolved config with the versions that run it, and the status that it runs."""
        if self._lease:
            files.write_text(self.path / "config.yaml", f"# {versions()}\n{config.dump(run)}")

    def status(self, state: status.State, step: int, reason: str = "") -> None:
        """Tell launchers and scripts how the run stands."""
        if self._lease:
            self._lease.check()
            status.write(self.path, state, step, reason)

    def refused(self, reason: str) -> None:
        """Tell of a mistake, unless another job is in the directory, or a result that the mistake leaves as it is."""
        state, step, _ = status.read(self.path)
        free = self._lease or not (self.path / "lease.json").exists()
        if self._writes and self.path.is_dir() and free and state != "done":
            status.write(self.path, "user_error", step, reason)

    def crashed(self, rank: int, error: BaseException) -> None:
        """Tell of a crash, from any rank; the first to fail names the cause. Another job's status is left alone."""
        state, step, _ = status.read(self.path)
        if state == "running" and (self.ours or not (self.path / "lease.json").exists()):
            reason = " ".join(str(error).split())[-500:]  # a data worker's own error stands last
            status.write(self.path, "crashed", step, f"rank {rank}: {type(error).__name__}: {reason}")

    def close(self) -> None:
        """Give the lease back."""
        if self._lease:
            self._lease.release()


def versions() -> str:
    """What runs here: packages, Python, git revision of this checkout."""
    here = [f"python {platform.python_version()}", *packages.versions("torch", "torchvision", "numpy", "wandb")]
    return f"moco-dist {__version__}, git {git_revision()}; {', '.join(here)}"


def git_revision() -> str:
    """Revision of the checkout; of a copy, what the copy was made of, which its file REVISION tells."""
    copied_from = Path(__file__).parents[2] / "REVISION"
    if copied_from.is_file():
        return copied_from.read_text(encoding="utf-8").strip()
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
