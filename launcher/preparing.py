"""Prepare run directories for their jobs; what is not sent leaves a directory as it was."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher import snapshot
from launcher.checks import preflight
from launcher.record import SENT_AGAIN, Launch, Submission, refuse_others
from moco_dist import config as configs
from moco_dist import files
from moco_dist.errors import UserError
from moco_dist.run import status
from moco_dist.run.lease import Lease


@contextlib.contextmanager
def held(launch: Launch, *folders: Path) -> Iterator[None]:
    """Make the folders of a run or a sweep, and keep other submissions out until the block ends.

    If the block raises, everything is put back as it was.

    Args:
        launch: its record.
        folders: folders of the record that are needed.

    Raises:
        UserError: another submission is being made there, or the directory belongs to another user.
        OSError: it cannot be written.
    """
    new_folders: list[Path] = []
    try:
        _make(launch.run_dir, new_folders)
        refuse_others(launch.run_dir)
        for folder in (launch.folder, *folders):
            _make(folder, new_folders)
            refuse_others(folder)
            folder.chmod(0o700)
        lease = Lease(launch.folder)
        try:
            with _put_back(launch):
                yield
        finally:
            lease.release()
    except BaseException:
        for folder in reversed(new_folders):
            with contextlib.suppress(OSError):  # somebody else has come to use it
                folder.rmdir()
        raise


def refuse_taken(launches: Sequence[Launch], cluster: str | None) -> None:
    """Refuse run directories that somebody runs: someone may have come since the first look. Raises UserError."""
    for findings in preflight.check_free([launch.run_dir for launch in launches], cluster).values():
        for finding in findings:
            if finding.level == "error":
                raise UserError(finding.text)


def write(launch: Launch, config: configs.Config) -> None:
    """Write the config, the id at W&B, and a status that lets the job start. Raises OSError."""
    if config.track.wandb != "disabled":
        from moco_dist.tracking.wandb_files import fixed_id  # its package is slow to import

        fixed_id(launch.paths.wandb)
    if not _is_config(launch.config_file, config):
        files.write_text(launch.config_file, configs.dump(config))
    before = launch.status()
    if before.state not in (None, "done"):
        status.write(launch.run_dir, "stopped", before.step, SENT_AGAIN)


def _is_config(file: Path, config: configs.Config) -> bool:
    """Return whether a file holds the config already: it then stays, since a job's own code may be older than this."""
    try:
        return file.is_file() and configs.load(file) == config
    except UserError:
        return False


def with_code(launches: Sequence[Launch], submission: Submission) -> Submission:
    """Return a submission with its copy of the code; where it has none, the checkout's is copied. Raises OSError."""
    copies = launches[0].codes(submission)
    has_copy = bool(submission.code) and launches[0].code(submission).is_dir()
    copies.mkdir(exist_ok=True, mode=0o700)
    code = submission.code if has_copy else snapshot.take(copies).name
    snapshot.describe([launch.folder for launch in launches], with_code=not has_copy)
    return submission.model_copy(update={"code": code})


def _make(folder: Path, new_folders: list[Path]) -> None:
    """Make a folder, private to its user, and those above it; add those that were missing. Raises OSError."""
    above = [place for place in folder.parents if not place.exists()]
    for place in reversed(above):
        place.mkdir(exist_ok=True)
        new_folders.append(place)
    if not folder.exists():
        folder.mkdir(exist_ok=True, mode=0o700)
        new_folders.append(folder)


@contextlib.contextmanager
def _put_back(launch: Launch) -> Iterator[None]:
    """Put a run's directory back as it was, if the block raises."""
    written = (launch.config_file, launch.job_file, launch.paths.status, *snapshot.described(launch.folder))
    before = {file: (files.read_bytes(file), file.stat()) for file in written if os.path.lexists(file)}
    folders = (launch.run_dir, launch.folder, launch.folder / "code", launch.paths.wandb)
    entries = {entry for folder in folders for entry in _inside(folder)}
    jobs = {_job_of(file) for file in _inside(launch.submitit)}  # of a sweep, some may live, and write files
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for entry in {entry for folder in folders for entry in _inside(folder)} - entries:
                _remove(entry)
            for file in _inside(launch.submitit):
                if _job_of(file) not in jobs:
                    _remove(file)
            for file, (content, details) in before.items():
                with files.replacing(file) as old:
                    old.write(content)
                os.utime(file, ns=(details.st_atime_ns, details.st_mtime_ns))
        raise


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _job_of(file: Path) -> str:
    """Return the job that a file of submitit's belongs to: the number that its name begins with."""
    return file.name.partition("_")[0]


def _remove(entry: Path) -> None:
    """Remove a file, or a folder with all that it holds, unless it went with another one. Raises OSError."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
