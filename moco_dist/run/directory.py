"""The run directory as one job writes it: its lease, its config, its status."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moco_dist import config
from moco_dist.errors import UserError, masked
from moco_dist.files import write_text
from moco_dist.run import code, figures, lease, paths, provenance, status

log = logging.getLogger(__name__)


def load_config(file: Path | None, overrides: Sequence[str] = (), values: Mapping[str, Any] = {}) -> config.Config:
    """Load a config as `config.load` does; one that lies in a run directory means that directory, even a moved one.

    An override of `run.dir` means another one, and of `run.name` alone the directory `runs/<name>`.

    Raises:
        UserError: whatever is wrong with it.
    """
    run_dir, values = paths.run_of(file), {**config.read_overrides(overrides), **values}
    if run_dir is None or "run.dir" in values:
        return config.load(file, values=values)
    if "run.name" in values:
        return config.load(file, values={**values, "run.dir": None})
    return config.load(file, values=values).at(run_dir)


def existing(folder: Path, key: str = "RUN_DIR", *, with_config: bool = False) -> Path:
    """Return the directory of a run: the folder, or that of the resolved config which it is.

    Args:
        folder: as the user names it.
        key: what named it, for the mistake.
        with_config: whether a run is refused that ended before it wrote its config.

    Raises:
        UserError: there is no such directory, or it is none of a run.
    """
    folder, fix = paths.run_of(folder) or folder, "give the directory of a run"
    if not folder.is_dir():
        raise UserError.of(key, folder, "is no directory" if folder.exists() else "no such directory", fix)
    file = paths.RunPaths(folder).config
    if not file.exists() and (with_config or status.read(folder).state is None):
        raise UserError.of(key, folder, f"holds no {file.name}", fix)
    if file.exists() and not file.is_file():
        raise UserError.of(key, file, "is not a regular file", "remove it")
    return folder


class Claim(NamedTuple):
    """A claim says that this job has opened the directory; rank 0 makes it, and all ranks hold it."""

    token: str
    """The token of the lease, by which it is told from that of a job that has taken it since."""
    earlier: status.Status
    """The status that was there: what an earlier start has left says nothing of this one."""


class RunDirectory:
    """A run directory, which one job writes. Nothing but a mistake or a crash is noted before `open`.

    Args:
        folder: the directory.
        goes_on_by: what a person types to go on with the run when it has been stopped.
    """

    def __init__(self, folder: Path, goes_on_by: str = "the same command") -> None:
        self.folder, self.paths, self.goes_on_by = folder, paths.RunPaths(folder), goes_on_by
        self.claim: Claim | None = None
        """The claim of this job, on every rank; None before the directory is opened."""
        self._lease: lease.Lease | None = None

    def open(self) -> Claim:
        """Make the directory, private to its user, and take the lease. Rank 0 alone.

        Raises:
            UserError: it cannot be written, or a live job writes to it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lease = lease.Lease(self.folder)
            self.paths.remove_unfinished()
            before = status.read(self.folder)
            if before.state == "crashed":  # what is told of a crash from here on is of this start
                status.write(self.folder, "running", before.step)
            return Claim(self._lease.token, status.read(self.folder))
        except OSError as error:
            rule = f"cannot be written: {error.strerror}"
            raise UserError.of("run.dir", self.folder, rule, "choose another") from None

    def check(self) -> None:
        """Raise Lost where another job has taken the lease: this one has nothing to write any more."""
        if self._lease:
            self._lease.check()

    @property
    def is_ours(self) -> bool:
        """Return whether this job has opened the directory, and no other one has taken it since."""
        return self.claim is not None and lease.token(self.folder) in ("", self.claim.token)

    def record(self, run: config.Config) -> None:
        """Write the resolved config with the versions that run it."""
        if self._lease:
            schema = f"{paths.METRICS}: schema {figures.SCHEMA}"
            write_text(self.paths.config, f"# {code.headline()}\n# {schema}\n{config.dump(run)}")

    def note_start(self, describe: Callable[[], provenance.Start]) -> None:
        """Note what this start runs on; where that cannot be read or written, training goes on without the note."""
        if not self._lease:
            return
        try:
            provenance.add(self.folder, describe())
        except (OSError, ValueError) as error:
            log.warning("%s: %s; training goes on without it", self.paths.provenance, error)

    @property
    def is_running(self) -> bool:
        """Return whether this job's run goes on as far as its status tells, so that no rank has told how it ends."""
        return self.is_ours and status.read(self.folder).state == "running"

    def status(self, state: status.State, step: int, reason: str = "", **lengths: int) -> None:
        """Tell launchers and scripts how the run stands; the arguments are those of `status.write`."""
        if self._lease:
            self.check()
            status.write(self.folder, state, step, reason, **lengths)

    def refused(self, reason: str) -> None:
        """Note a mistake, unless another job is in the directory, or a result that the mistake leaves as it is."""
        before = status.read(self.folder)
        if self.folder.is_dir() and self._is_free() and before.state != "done":
            status.write(self.folder, "user_error", before.step, reason)

    def crashed(self, rank: int, error: BaseException) -> str:
        """Note a crash, from any rank; the first to fail names the cause. Another job's status is left alone.

        Returns:
            What the first to fail has noted in this start; empty where it is this rank, or nobody could.
        """
        before, free = status.read(self.folder), self._is_free()
        is_older = self.claim is not None and before == self.claim.earlier and before.state != "done"
        if free and (before.state == "running" or is_older):
            status.write(self.folder, "crashed", before.step, f"rank {rank}: {cause(error)}")
        return before.reason if self.claim and free and before.state == "crashed" else ""

    def stopped_alone(self, step: int, reason: str) -> None:
        """Note a stop, from any rank that the others wait for in vain; who ends after it changes nothing any more."""
        if self.is_running:
            status.write(self.folder, "stopped", step, reason)

    def _is_free(self) -> bool:
        """Return whether no other job is in the directory."""
        return self.is_ours if self.claim else not self.paths.lease.exists()

    def close(self) -> None:
        """Give the lease back."""
        if self._lease:
            self._lease.release()


def cause(error: BaseException) -> str:
    """Write an error on one line; of one that comes with a data worker's traceback, the last line says it all."""
    lines = str(error).strip().splitlines()
    if any(line.startswith("Original Traceback") for line in lines):
        return masked(lines[-1][-500:])
    return masked(f"{type(error).__name__}: {' '.join(str(error).split())[-500:]}")
