"""Pack a folder of images into shards: tar files in WebDataset's layout, with an index beside them.

Each image is followed by a file with its class, `NAME.cls`. The same images give the same bytes, whenever and wherever
they are packed. The index is written last, so that a folder without it was not packed to its end.
"""

import contextlib
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
from tqdm import tqdm

from moco_dist import files
from moco_dist.data import shards
from moco_dist.data.index import Listing, Split, list_folder
from moco_dist.data.shards import PackedSplit, Places, Shard
from moco_dist.data.tree import SHARD_INDEX
from moco_dist.errors import UserError, printable

_READERS = 8
"""Threads that read images ahead; a shared disk answers many at once."""
_READ_AHEAD = 32
"""Images that are held in memory."""
_RECORD_BYTES = 10_240
"""A tar's length is a multiple of it."""


class _ShardFile:
    """A tar that is being written; its digest is computed on the way."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self._sha256, self._head = path, 0, hashlib.sha256(), b""
        self._file: BinaryIO = path.open("xb")

    def add(self, name: bytes, content: bytes) -> int:
        """Add a member to the tar. Returns where its content begins."""
        member = tarfile.TarInfo(os.fsdecode(name))
        member.size, member.mode = len(content), 0o644
        self._write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        offset = self.size
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset

    def finish(self) -> Shard:
        """End the tar, and return what the index holds of it."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % _RECORD_BYTES))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return Shard(self.path.name, self.size, self._sha256.hexdigest(), zlib.crc32(self._head))

    def close(self) -> None:
        self._file.close()

    def _write(self, block: bytes) -> None:
        self._file.write(block)
        self._sha256.update(block)
        self._head += block[: shards.HEAD_BYTES - len(self._head)]
        self.size += len(block)


def pack(root: Path, out: Path, shard_mib: int) -> list[str]:
    """Pack a folder of images into a folder of shards, with a progress bar on stderr.

    Args:
        root: the folder of images, as `data.root` would name it.
        out: the folder of shards; it is made, or empty.
        shard_mib: size that a shard may have, in MiB; a larger image is alone in its shard.

    Returns:
        A line for each kind of what was left out.

    Raises:
        UserError: `out` holds something, the folder is refused as the trainer would refuse it, or a file cannot be
            read or written. Nothing is left of what was written.
    """
    if shards.is_packed(root):
        raise UserError.of("FOLDER", root, "is a folder of shards", "give the folder of images")
    try:
        if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
            raise UserError.of("OUT", out, "is there already, and not empty", "choose another name, or remove it")
        listings = {split: list_folder(root, split) for split in get_args(Split)}
        is_new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError.of("OUT", out, f"cannot be written: {error.strerror}", "choose another place") from None
    written = list[Path]()
    try:
        prefixes = {split: _prefix(root, listing) for split, listing in listings.items()}
        taken = set[bytes]()
        with tqdm(desc="packing", total=sum(len(one.names) for one in listings.values()), unit=" images") as bar:
            splits = {
                split: _pack_split(listing, prefixes[split], out, shard_mib * 2**20, written, taken, bar)
                for split, listing in listings.items()
            }
        with files.replacing(out / SHARD_INDEX, durable=True) as file:
            np.savez(file, **shards.index_of(splits))
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            if is_new:
                out.rmdir()
        if isinstance(error, OSError):
            raise UserError.of("OUT", out, f"cannot be written: {error.strerror}", "choose another place") from None
        raise
    return [remark for listing in listings.values() for remark in listing.remarks]


def verify(out: Path) -> tuple[int, int]:
    """Read a folder of shards to its end, with a progress bar on stderr, and compare each shard with its digest.

    Returns:
        Numbers of shards and images.

    Raises:
        UserError: names the first shard that is missing or changed, and tells how many there are.
    """
    if not shards.is_packed(out):
        raise UserError.of("OUT", out, f"has no {SHARD_INDEX}", "give a folder that was packed to its end")
    splits = [shards.read_split(out, split, "OUT") for split in get_args(Split)]
    packed = [shard for split in splits for shard in split.shards]
    faults = list[str]()
    with tqdm(desc="verifying", total=sum(one.size for one in packed), unit="B", unit_scale=True) as bar:
        for shard in packed:
            if fault := shards.fault(out / shard.name, shard) or _changed(out / shard.name, shard):
                faults.append(f"the shard {shard.name} {fault}")
            bar.update(shard.size)
    if faults:
        more = f"; {len(faults)} of {len(packed)} shards have a fault" if len(faults) > 1 else ""
        raise UserError.of("OUT", out, faults[0] + more, f"copy it again, or {shards.PACK_AGAIN}")
    return len(packed), sum(len(split.names) for split in splits)


def _changed(path: Path, shard: Shard) -> str:
    try:
        with path.open("rb") as file:
            equal = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if equal else "was changed: its sha256 is not that of what was packed"


def _prefix(root: Path, listing: Listing) -> str:
    """Return what leads from the root to the folder of a listing."""
    folder = str(listing.folder.relative_to(root))
    return "" if folder == "." else f"{folder}/"


def _pack_split(
    listing: Listing, prefix: str, out: Path, most_bytes: int, written: list[Path], taken: set[bytes], bar: "tqdm[None]"
) -> PackedSplit:
    """Write the shards of a split.

    Args:
        listing: of the split.
        prefix: what leads from the root to its folder.
        out: the folder of shards.
        most_bytes: size of a shard.
        written: each new shard's path is added to it.
        taken: keys of WebDataset that are in use, to which those of the split are added.
        bar: counts the images.
    """
    done, images = list[Shard](), list[tuple[int, int, int, int]]()
    stem, shard = prefix.rstrip("/") or "images", None
    try:
        for number, content in enumerate(_contents(listing)):
            key, suffix = _key(os.fsencode(prefix) + listing.names[number], taken)
            if shard is None or shard.size + len(content) + _RECORD_BYTES > most_bytes:
                done += [shard.finish()] if shard else []
                shard = _ShardFile(out / f"{stem}-{len(done):06d}.tar")
                written.append(shard.path)
            offset = shard.add(key + suffix, content)
            if listing.labels is not None:
                shard.add(key + b".cls", str(listing.labels[number]).encode())
            images.append((len(done), offset, len(content), zlib.crc32(content)))
            bar.update()
        done += [shard.finish()] if shard else []
    finally:
        if shard:
            shard.close()
    places = Places(out, tuple(one.name for one in done), prefix, np.array(images, dtype=shards.IMAGE))
    labels = None if listing.labels is None else np.array(listing.labels, dtype=np.int64)
    return PackedSplit(np.array(listing.names, dtype=bytes), labels, listing.classes, tuple(done), places)


def _contents(listing: Listing) -> Iterator[bytes]:
    """Read the files of a listing in their order, some of them ahead. Raises UserError where one cannot be read."""

    def read(name: bytes) -> bytes:
        file = listing.folder / os.fsdecode(name)
        try:
            return file.read_bytes()
        except OSError as error:
            rule = f"cannot be read: {error.strerror}"
            raise UserError.of("FOLDER", printable(str(file)), rule, "mend or remove it") from None

    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(listing.names), _READ_AHEAD):
            yield from readers.map(read, listing.names[start : start + _READ_AHEAD])


def _key(name: bytes, taken: set[bytes]) -> tuple[bytes, bytes]:
    """Split a name into WebDataset's key, which no other image has, and the suffix.

    WebDataset takes what follows the first dot of a file's name for its suffix, so that a key has no dot there.
    """
    folder, slash, file = name.rpartition(b"/")
    stem, suffix = os.path.splitext(file)  # noqa: PTH122  bytes
    key = folder + slash + stem.replace(b".", b"_")
    while key in taken:
        key += b"_"
    taken.add(key)
    return key, suffix
