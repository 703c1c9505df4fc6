"""A store is what images are read from: arrays in memory, or files and shards that are decoded when they are needed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_dist.config.data_section import DataSection
from moco_dist.config.section import Interval
from moco_dist.data import crops, photographs
from moco_dist.data.boxes import Boxes, Crops, Indices, Outline, rows_of
from moco_dist.data.crops import Placer
from moco_dist.data.decode import Unreadable, decode
from moco_dist.data.image_file import ImageFile, shorter_side
from moco_dist.data.pixel_statistics import PixelStatistics
from moco_dist.data.shards import Places
from moco_dist.data.tree import some
from moco_dist.errors import UserError, printable
from moco_dist.files import AWAY
from moco_dist.ranks import devices

T = TypeVar("T")

Labels = NDArray[np.int64]


class Away(Exception):
    """Images cannot be read for a time, and none of them is at fault; no OSError, which may be of what is written."""


class Source(Protocol):
    """A source holds images with or without labels, which are read by their place in it."""

    @property
    def device(self) -> torch.device:
        """Return where views are cut: the CPU, or a device that has the images in its memory."""

    @property
    def labels(self) -> Labels | None: ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes; none where classes have numbers alone."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return a line for each kind of files that were passed over."""

    @property
    def channels(self) -> int: ...

    @property
    def pixel_statistics(self) -> PixelStatistics: ...

    def __len__(self) -> int: ...

    def subset(self, indices: Indices) -> Source:
        """Return a source of the images at these places alone."""

    def shortest_side(self) -> int | None:
        """Return the shorter side of a typical image in pixels; None where no image can be read."""

    def crops(self, indices: Indices, draws: NDArray[np.float32], data: DataSection) -> tuple[Crops, list[Unreadable]]:
        """Crop some random views of each image; a file is decoded once for all its views.

        Args:
            indices: [n] places of the images.
            draws: [V, n, CROP_DRAWS] uniform numbers, for V views of each image.
            data: size of the crops, and limits of their area and ratio.

        Returns:
            uint8 [V, n, C, S, S], or where to `cut` them; and the images that could not be read and were replaced.
        """

    def outline(self) -> Outline:
        """Return what places crops in images on a device."""

    def cut(self, boxes: Boxes) -> Tensor:
        """Cut views out of images on a device, uint8 [V, n, C, S, S]; nothing waits for it."""

    def centred(self, indices: Indices, size: int) -> tuple[Tensor, list[Unreadable]]:
        """Cut out the centre of each image, as an evaluation sees it.

        Args:
            indices: [n] places of the images.
            size: side S of the result in pixels.

        Returns:
            uint8 [n, C, S, S] on the source's device, and the images that could not be read and were replaced.
        """

    def digest(self) -> str:
        """Return the sha256 of what tells it from other sources: pixels in memory or names of files, and labels.

        It does not depend on where a folder lies, nor on what its files hold, for which there is `sample_digest`.
        """

    def sample_digest(self) -> str:
        """Return the sha256 of the contents of a few files; empty for images in memory."""


@dataclass(frozen=True)
class ArraySource:
    """An array source holds images of one size in memory or on a device, uint8 [N, C, H, W]."""

    images: Tensor
    labels: Labels | None
    pixel_statistics: PixelStatistics
    classes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Indices) -> ArraySource:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, images=rows_of(self.images, indices), labels=labels)

    def shortest_side(self) -> int:
        return min(self.images.shape[2:])

    def crops(self, indices: Indices, draws: NDArray[np.float32], data: DataSection) -> tuple[Crops, list[Unreadable]]:
        boxes, _ = self.outline().crops(indices, draws, data)
        return boxes if devices.runs_ahead(self.device) else self.cut(boxes), []

    def outline(self) -> Outline:
        return Outline.of(self.images)

    def cut(self, boxes: Boxes) -> Tensor:
        return boxes.cut(self.images, crops.resized_crop)

    def centred(self, indices: Indices, size: int) -> tuple[Tensor, list[Unreadable]]:
        return crops.centre_batch(rows_of(self.images, indices), size), []

    def digest(self) -> str:
        return _sha256(self.labels, self.images.cpu().numpy().tobytes())

    def sample_digest(self) -> str:
        return ""


@dataclass(frozen=True)
class FileSource:
    """A file source decodes files below a folder, or in shards that were made of it.

    The next readable image replaces one that cannot be decoded.
    """

    folder: Path
    names: NDArray[np.bytes_]
    """[N] paths below the folder; bytes in one array, since a list of str would be copied into every worker by its
    reference counts."""
    labels: Labels | None
    classes: tuple[str, ...]
    channels: int
    pixel_statistics: PixelStatistics
    value_range: Interval | None = None
    """The values of more than 8 bits a channel that become 0 and 255, as `decode` takes them."""
    remarks: tuple[str, ...] = ()
    places: Places | None = None
    """The places of the images in the shards; None where each is a file of its own."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Indices) -> FileSource:
        labels = None if self.labels is None else self.labels[indices]
        places = None if self.places is None else self.places.subset(indices)
        return replace(self, names=self.names[indices], labels=labels, places=places)

    def shortest_side(self) -> int | None:
        sides = [side for file in self.sample(9) if (side := shorter_side(file)) is not None]
        return int(np.median(sides)) if sides else None

    def sample(self, images: int) -> list[ImageFile]:
        """Return the files of at most so many images, spread over the source; always the same."""
        return [self.file(place) for place in some(range(len(self)), images)]

    def crops(self, indices: Indices, draws: NDArray[np.float32], data: DataSection) -> tuple[Crops, list[Unreadable]]:
        unreadable: list[Unreadable] = []
        shape = (len(draws), len(indices), data.image_size, data.image_size, self.channels)
        views = torch.empty(shape, dtype=torch.uint8)  # [V, n, S, S, C], in the order in which decoders give pixels
        placers = crops.placers_of(draws, data.crop_scale, data.crop_ratio)
        for column, (place, placer) in enumerate(zip(indices.tolist(), placers, strict=True)):
            read = functools.partial(self._crops_of, placer=placer, data=data)
            for view, crop in zip(views[:, column], self._first_readable(place, read, unreadable), strict=True):
                view.copy_(crop)
        return views.movedim(4, 2), unreadable

    def _crops_of(self, file: ImageFile, placer: Placer, data: DataSection) -> list[Tensor]:
        """Crop the views of one file, uint8 [S, S, C] each, in the way that `data.decode` says."""
        if data.decode == "cpu":
            return photographs.crop_views(file, placer, data.image_size, self.channels, self.value_range)
        planes = decode(file, self.channels, self.value_range)
        width, height = planes[0].size
        cropped = ([crops.crop_file(p, box, data.image_size) for p in planes] for box in placer(height, width))
        return [torch.cat(of_view).movedim(0, 2) for of_view in cropped]

    def outline(self) -> Outline:
        raise AssertionError("files are not on a device")

    def cut(self, boxes: Boxes) -> Tensor:
        raise AssertionError("files are not on a device")

    def centred(self, indices: Indices, size: int) -> tuple[Tensor, list[Unreadable]]:
        unreadable: list[Unreadable] = []
        return torch.stack([self._centre(n, size, unreadable) for n in indices.tolist()]), unreadable

    def digest(self) -> str:
        return _sha256(self.labels, b"\0".join(self.names.tolist()))

    def sample_digest(self) -> str:
        contents = []
        for file in self.sample(16):
            with contextlib.suppress(OSError):  # a file that cannot be read is told of where it is decoded
                contents.append(file.read_bytes())
        return _sha256(None, *(hashlib.sha256(content).digest() for content in contents))

    def file(self, place: int) -> ImageFile:
        """Return the file of one image, which is not opened yet."""
        name = self.names[place]
        return self.folder / os.fsdecode(name) if self.places is None else self.places.member(place, name)

    def _centre(self, place: int, size: int, unreadable: list[Unreadable]) -> Tensor:
        read = functools.partial(decode, channels=self.channels, value_range=self.value_range)
        return torch.cat([crops.centre(plane, size) for plane in self._first_readable(place, read, unreadable)])

    def _first_readable(self, place: int, read: Callable[[ImageFile], T], unreadable: list[Unreadable]) -> T:
        """Read the image at a place, or the next readable one.

        Args:
            place: of the image in the source.
            read: what is wanted of a file.
            unreadable: the image is added to it where another one replaces it. Those passed over in search of one are
                not: each is counted where it is asked for itself, and so once an epoch.

        Raises:
            UserError: the source has no readable image.
        """
        for offset in range(len(self)):
            result = self.attempt((place + offset) % len(self), read)
            if not isinstance(result, Unreadable):
                return result
            if offset == 0:
                unreadable.append(result)
        raise self.unusable(unreadable[-1])

    def attempt(self, place: int, read: Callable[[ImageFile], T]) -> T | Unreadable:
        """Read the image at a place, or tell why that cannot be done. Raises Away."""
        file = self.file(place)
        try:
            return read(file)
        except MemoryError:
            raise  # the process's own, which another image would not mend
        except Exception as error:  # decoders raise errors of their own kinds
            if isinstance(error, OSError) and error.errno in AWAY:
                raise Away(f"{printable(str(file))}: {error.strerror}") from error
            return Unreadable.of(file, error)

    def unusable(self, unreadable: Unreadable) -> UserError:
        """Word the mistake of a source without any readable image."""
        rule = f"none of its {len(self)} images can be decoded; {unreadable}"
        return UserError(f"data.root = {self.folder}: {rule}; mend the files")


def _sha256(labels: Labels | None, *contents: bytes) -> str:
    """Hash labels and contents, in hexadecimal digits."""
    sha256 = hashlib.sha256(b"" if labels is None else labels.tobytes())
    for content in contents:
        sha256.update(content)
    return sha256.hexdigest()
