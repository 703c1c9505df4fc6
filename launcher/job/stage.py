"""Unpack an archive of the data, or copy a folder of shards, onto a node's own disk, once a node."""

import errno
import hashlib
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from launcher.record import refuse_others
from moco_dist.data.tree import SHARD_INDEX
from moco_dist.errors import UserError
from moco_dist.files import AWAY
from moco_dist.run.lease import process_start

# What a damaged archive raises, by format; RuntimeError: one that is encrypted, or packed in a way that is not known.
_UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


_OF_THE_NODE = AWAY | {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""Errors that another node may not have: a full disk, one that is broken, and one that is away from here."""


class NodeTrouble(UserError):
    """This node cannot unpack the archive; another one may."""


def unpack(archive: Path, local_disk: Path) -> Path:
    """Unpack an archive, unless this node has it from before. Returns the folder with its content.

    Its name holds the archive's path, size and time, so that a new archive is unpacked anew. Jobs of a user that start
    at once on a node unpack each for itself, and the first to finish serves all.

    Args:
        archive: tar, compressed or not, or zip; or a folder of shards, which is copied.
        local_disk: folder on the node's own disk.

    Raises:
        NodeTrouble: the disk is full, broken or away.
        UserError: there is no such archive, or it cannot be unpacked.
    """
    try:
        index = archive / SHARD_INDEX
        details = (index if index.is_file() else archive).stat()
        folder = local_disk / f"moco-dist-{os.getuid()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_others(folder)
        key = f"{archive.resolve()}\0{details.st_size}\0{details.st_mtime_ns}"
        unpacked = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        if unpacked.is_dir():
            return unpacked
        _remove_halves(folder)
        half = folder / f"{unpacked.name}.{os.getpid()}.{process_start(os.getpid()).replace(' ', '_')}.part"
        half.mkdir(mode=0o700)
        try:
            _extract(archive, half)
            _put_in_place(half, unpacked)
        finally:
            shutil.rmtree(half, ignore_errors=True)  # a full disk is not to stay full
        return unpacked
    except (OSError, *_UNREADABLE) as error:
        cause = str(error).partition("\n")[0].rstrip(":")  # tarfile lists every format that it has tried
        rule = f"cannot be unpacked into {local_disk} ({cause})"
        number = error.errno if isinstance(error, OSError) else None
        kind = NodeTrouble if number in _OF_THE_NODE else UserError
        fix = "look at this node and its disks" if number in AWAY else "give a tar or zip that fits there"
        raise kind.of("--stage", archive, rule, fix) from None


def _extract(archive: Path, folder: Path) -> None:
    """Unpack an archive, or copy a folder of shards; names that lead out of the folder are refused."""
    if archive.is_dir():
        for file in (archive / SHARD_INDEX, *archive.glob("*.tar")):
            shutil.copyfile(file, folder / file.name)
    elif zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):  # a tar may end in a zip
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
            _read_to_the_end(packed)


def _read_to_the_end(packed: tarfile.TarFile) -> None:
    """Find damage that tarfile passes over: a broken header, which it takes for the end, or a wrong checksum."""
    assert packed.fileobj is not None
    while block := packed.fileobj.read(2**20):
        if block.strip(b"\0"):
            raise tarfile.ReadError("damaged: its members end before the file does")


def _put_in_place(half: Path, unpacked: Path) -> None:
    """Give the unpacked folder its final name, unless another job was first."""
    try:
        half.rename(unpacked)
    except OSError:
        if not unpacked.is_dir():
            raise


def _remove_halves(folder: Path) -> None:
    """Remove what killed jobs left behind that were still unpacking."""
    for half in folder.glob("*.part"):
        pid, started = half.name.split(".")[1:3]
        if process_start(int(pid)).replace(" ", "_") != started:
            shutil.rmtree(half, ignore_errors=True)
