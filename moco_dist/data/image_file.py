"""An image file lies in a folder or in a shard; here it is opened, and its head is read.

Nothing here needs torch, so that the launcher can look at images on a login node; numpy is imported where it is used.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from moco_dist.data.tree import ARRAY_SUFFIX

if TYPE_CHECKING:
    from numpy.typing import NDArray

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else it prints what it raises too, in each worker

_OPEN_SHARDS = 256
"""Shards that a process keeps open; a process may often open 1024 files."""


class Member(NamedTuple):
    """A member is an image in a shard; it is told as `SHARD!NAME`, and has what is needed of a `Path`."""

    shard: Path
    name: str
    """Path of the image below the folder that was packed."""
    offset: int
    """The byte of the shard at which the image begins."""
    length: int
    """Number of its bytes."""
    checksum: int
    """CRC-32 of its bytes."""

    @property
    def suffix(self) -> str:
        return PurePath(self.name).suffix

    def read_bytes(self) -> bytes:
        """Read the image. Raises OSError where its shard cannot be read, or holds other bytes than were packed."""
        content = os.pread(_opened_shard(self.shard).number, self.length, self.offset)
        if len(content) < self.length:
            raise OSError("its shard ends before it")
        if zlib.crc32(content) != self.checksum:
            raise OSError("its shard was changed: these are not the bytes that were packed")
        return content

    def open(self, _mode: str = "rb") -> io.BytesIO:
        """Open the image, which is read whole. Raises as `read_bytes`."""
        return _Content(self)

    def __str__(self) -> str:
        return f"{self.shard}!{self.name}"


ImageFile = Path | Member


class _Shard:
    """A shard that is open for reading, and closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(_OPEN_SHARDS)
def _opened_shard(path: Path) -> _Shard:
    """Open a shard once in a process. A forked process may use what is open: `pread` moves no shared position."""
    return _Shard(path)


class _Content(io.BytesIO):
    """The bytes of a member, which PIL names in its errors as it would name a file."""

    def __init__(self, member: Member) -> None:
        super().__init__(member.read_bytes())
        self._name = str(member)

    def __repr__(self) -> str:
        return repr(self._name)


def shorter_side(file: ImageFile) -> int | None:
    """Read the shorter side of an image in pixels from the head of its file; None where that cannot be read."""
    try:
        if file.suffix.lower() == ARRAY_SUFFIX:
            shape: tuple[int, ...] = array(file).shape
            return sorted(shape)[-2]  # the channels are fewer than the pixels of a side
        with opened(file) as image:
            return min(image.size)
    except MemoryError:
        raise
    except Exception:  # decoders raise errors of their own kinds
        return None


@contextmanager
def opened(file: ImageFile | io.BytesIO) -> Iterator[Image.Image]:
    """Open an image file, or what was read of one, without PIL's warnings, which each worker would tell anew.

    They are about metadata, and about images of more pixels than usual; PIL refuses those of 179 million and more.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file.open() if isinstance(file, Member) else file) as image:
            yield image


def array(file: ImageFile) -> NDArray[Any]:
    """Open an image that is a NumPy array, [H, W] or three axes; of a file in a folder, only the head is read.

    Raises:
        OSError, ValueError, TypeError: it is no such array, or cut short.
        DecompressionBombError: it has more pixels than PIL allows an image.
    """
    from numpy.lib.format import open_memmap  # a launcher that looks at other images has no need of numpy

    values: NDArray[Any] = _array_in_shard(file) if isinstance(file, Member) else open_memmap(file, mode="r")
    if values.ndim not in (2, 3):
        raise ValueError(f"has the shape {list(values.shape)}; save [H, W] or [H, W, C]")
    height, width = sorted(values.shape)[-2:]
    if Image.MAX_IMAGE_PIXELS and height * width > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"has {height * width} pixels, more than {2 * Image.MAX_IMAGE_PIXELS}")
    return values


def read_array(file: ImageFile) -> NDArray[Any]:
    """Read an image that is a NumPy array into memory. Raises as `array`."""
    import numpy as np

    values = array(file)  # refuses what would not fit
    return values if isinstance(file, Member) else np.asarray(np.load(file, allow_pickle=False))


def _array_in_shard(member: Member) -> NDArray[Any]:
    import numpy as np

    content, npy = member.open(), np.lib.format
    read_head = npy.read_array_header_1_0 if npy.read_magic(content) == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read_head(content)
    if dtype.hasobject:
        raise ValueError("holds Python objects, no numbers")
    # A head that claims more values than there are bytes is refused here.
    return np.ndarray(shape, dtype, content.getbuffer(), content.tell(), order="F" if is_fortran else "C")
