"""Tell which checkpoints a run has, and whether they are whole. Their content is the engine's, in torch's format.

A checkpoint is the archive that torch writes, followed by a checksum: `torch.load` finds the end of a zip from behind,
so the file opens without us too.
"""

import contextlib
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from moco_dist.files import AWAY, read_bytes

log = logging.getLogger(__name__)

MARK = b"moco-dist sha256 "
_FOOTER = len(MARK) + 64


class Damaged(Exception):
    """A checkpoint does not read back as it was written."""


@dataclass(frozen=True)
class CheckpointIndex:
    """The index lists the checkpoints in a folder, `step_<step>.pt`."""

    folder: Path

    def path(self, step: int) -> Path:
        """Return the file of a step."""
        return self.folder / f"step_{step:09d}.pt"

    def steps(self) -> list[int]:
        """Return the steps that have a file, in order; not all need be whole."""
        names = (file.stem.removeprefix("step_") for file in self.folder.glob("step_*.pt"))
        return sorted(int(name) for name in names if name.isdecimal())

    def last(self) -> int:
        """Return the last step that has a file, or 0 for none."""
        return max(self.steps(), default=0)

    def size(self) -> int:
        """Return the bytes that all checkpoints take. Raises OSError."""
        return sum(self.path(step).stat().st_size for step in self.steps())

    def latest(self) -> int | None:
        """Return the last step whose checkpoint is whole. Others are named, and set aside as `*.damaged`.

        Those that cannot be read are set aside, too: the next ones, of earlier steps, would be the first to be removed.

        Raises:
            OSError: the disk is away for a time, or this process is out of files or memory, of which a run that goes on
                from an earlier step, or from none, would know nothing.
        """
        for step in reversed(self.steps()):
            try:
                verify(self.path(step))
                return step
            except (Damaged, OSError) as error:
                if isinstance(error, OSError) and error.errno in AWAY:
                    raise
                log.warning("checkpoint %s passed over for the one before: %s", self.path(step), error)
                with contextlib.suppress(OSError):  # a read-only folder: it is passed over again
                    self.path(step).rename(self.path(step).with_suffix(".pt.damaged"))
        return None

    def remove_unfinished(self) -> None:
        """Remove what a start that was killed in the middle of a save has left. Raises OSError."""
        for stale in self.folder.glob(".step_*"):
            stale.unlink()


def verify(path: Path) -> bytes:
    """Return the archive of a checkpoint, its checksum verified. Raises Damaged, OSError."""
    content = read_bytes(path)
    archive, footer = content[:-_FOOTER], content[-_FOOTER:]
    if not footer.startswith(MARK):
        raise Damaged("cut short: the checksum at its end is missing")
    if hashlib.sha256(archive).hexdigest().encode() != footer[len(MARK) :]:
        raise Damaged("its checksum does not match: some bits have changed")
    return archive
