"""Images in shards: tar files that hold a folder of images, and an index that knows where in them each image lies.

A folder of shards holds what one folder of images holds, in the same order, under the same names. Its index,
`shards.npz`, is read whole at the start, so that no tar is walked through; an image is read by its place in a shard.
Nothing here needs torch.
"""

from __future__ import annotations

import functools
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from moco_dist.data.image_file import Member
from moco_dist.data.index import Split
from moco_dist.data.tree import SHARD_INDEX
from moco_dist.errors import UserError, printable

HEAD_BYTES = 4096
"""Bytes at the beginning of a shard that are compared at each start; the first image's name is among them."""
FORMAT = 1
"""Number of the index's format; another number is refused."""
PACK_AGAIN = "pack it again: python -m moco_dist.data pack FOLDER OUT"

_UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Errors of a damaged index; RuntimeError where a bit claims that it is encrypted, or packed in an unknown way."""

IMAGE = np.dtype([("shard", "<i4"), ("offset", "<i8"), ("length", "<i8"), ("checksum", "<u4")])
"""An image's entry in the index: the number of its shard, its first byte there, the number of bytes, their CRC-32."""


class Shard(NamedTuple):
    """A shard as it was packed."""

    name: str
    size: int
    """Bytes of the file."""
    sha256: str
    """The SHA-256 of the file in hexadecimal digits."""
    head: int
    """CRC-32 of its first HEAD_BYTES bytes."""


class Places(NamedTuple):
    """Places tell where each of N images lies."""

    folder: Path
    """The folder of shards."""
    shards: tuple[str, ...]
    """[S] names of the shards."""
    prefix: str
    """The path from the folder that was packed to the folder of the split, such as `train/`."""
    images: NDArray[np.void]
    """[N] of IMAGE: one array, which workers share or copy at little cost."""

    def subset(self, indices: NDArray[np.int64]) -> Places:
        """Return the places of some of the images."""
        return self._replace(images=self.images[indices])

    def member(self, number: int, name: bytes) -> Member:
        """Return one image by its number and its name below the folder of the split."""
        shard, offset, length, checksum = self.images[number].tolist()
        path = _shard_path(str(self.folder), self.shards[shard])
        return Member(path, self.prefix + os.fsdecode(name), offset, length, checksum)


class PackedSplit(NamedTuple):
    """A split of a folder of images as it was packed: its listing, and where each image lies."""

    names: NDArray[np.bytes_]
    """[N] as in the listing."""
    labels: NDArray[np.int64] | None
    """[N] as in the listing."""
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    places: Places

    def arrays(self) -> dict[str, Any]:
        """Return what the index holds of the split; names are joined, since one long name would widen an array."""
        arrays = {
            "names": _joined(self.names.tolist()),
            "classes": _joined(map(os.fsencode, self.classes)),
            "prefix": _joined([os.fsencode(self.places.prefix)]),
            "shards": np.array([shard.name for shard in self.shards], dtype=np.str_),
            "sizes": np.array([shard.size for shard in self.shards], dtype=np.int64),
            "sha256": np.array([shard.sha256 for shard in self.shards], dtype=np.str_),
            "heads": np.array([shard.head for shard in self.shards], dtype=np.uint32),
            "images": self.places.images,
        }
        return arrays if self.labels is None else {**arrays, "labels": self.labels}

    @classmethod
    def of(cls, folder: Path, arrays: Mapping[str, Any]) -> PackedSplit:
        """Read a split from what `arrays` has returned. Raises KeyError where something is missing."""
        names = np.array(_parted(arrays["names"]), dtype=bytes)
        columns = (arrays[name].tolist() for name in ("shards", "sizes", "sha256", "heads"))
        shards = tuple(Shard(*fields) for fields in zip(*columns, strict=True))
        prefix = os.fsdecode(b"".join(_parted(arrays["prefix"])))
        places = Places(folder, tuple(shard.name for shard in shards), prefix, arrays["images"])
        classes = tuple(map(os.fsdecode, _parted(arrays["classes"])))
        # What the index lost of its own list of contents would else pass for images without classes.
        labels = arrays["labels"] if len(names) and classes else arrays.get("labels")
        return cls(names, labels, classes, shards, places)


def is_packed(root: Path) -> bool:
    """Tell whether a folder is one of shards, by its index."""
    try:
        return (root / SHARD_INDEX).is_file()
    except OSError:
        return False


def open_split(root: Path, split: Split, key: str = "data.root") -> PackedSplit:
    """Open a split of a folder of shards, after a look at the size and the head of each of its shards.

    Args:
        root: the folder, as the user names it.
        split: train or test.
        key: what the user has named the folder by.

    Raises:
        UserError: the index is damaged; or a shard is missing, was cut short or was changed.
    """
    packed = read_split(root, split, key)
    for shard in packed.shards:
        if problem := fault(root / shard.name, shard):
            raise UserError.of(key, root, f"the shard {shard.name} {problem}", f"copy it again, or {PACK_AGAIN}")
    return packed


def read_split(root: Path, split: Split, key: str = "data.root") -> PackedSplit:
    """Read a split from the index, without a look at its shards. Raises UserError where the index is damaged."""
    try:
        with (root / SHARD_INDEX).open("rb") as file, np.load(file, allow_pickle=False) as index:
            if index["format"] != FORMAT:
                rule = f"{SHARD_INDEX} has the format {index['format']}, and this version reads {FORMAT}"
                raise UserError.of(key, root, rule, f"use the version that packed it, or {PACK_AGAIN}")
            fields = {name.removeprefix(f"{split}/"): name for name in index.files if name.startswith(f"{split}/")}
            return PackedSplit.of(root, {field: index[name] for field, name in fields.items()})
    except _UNREADABLE as error:
        rule = f"{SHARD_INDEX} cannot be read: {printable(str(error))}"
        raise UserError.of(key, root, rule, f"copy it again, or {PACK_AGAIN}") from None


def index_of(splits: Mapping[Split, PackedSplit]) -> dict[str, Any]:
    """Return the arrays that the index of a folder of shards holds."""
    assert set(splits) == set(get_args(Split))
    fields = {f"{split}/{name}": array for split, packed in splits.items() for name, array in packed.arrays().items()}
    return {"format": np.int64(FORMAT), **fields}


@functools.cache
def _shard_path(folder: str, name: str) -> Path:
    return Path(folder, name)  # made once for all images of a shard


def fault(path: Path, shard: Shard) -> str:
    """Tell what is wrong with a shard, as far as its size and its head show it; empty where nothing is."""
    try:
        with path.open("rb") as file:
            size, head = os.fstat(file.fileno()).st_size, zlib.crc32(file.read(HEAD_BYTES))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if size != shard.size:
        return f"has {size} bytes, and {shard.size} were packed"
    return "" if head == shard.head else "was changed: it does not begin as it was packed"


def _joined(names: Any) -> NDArray[np.uint8]:
    return np.frombuffer(b"\0".join(names), dtype=np.uint8)


def _parted(joined: NDArray[np.uint8]) -> Sequence[bytes]:
    return joined.tobytes().split(b"\0") if len(joined) else []
