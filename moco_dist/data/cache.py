"""Decode the small images of a folder once, and keep them where they are cropped: on the device, or in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from moco_dist.config import Config
from moco_dist.config.data_section import DataSection
from moco_dist.data import crops, loader
from moco_dist.data.boxes import Boxes, Crops, Indices, Outline, rows_of
from moco_dist.data.decode import Planes, Unreadable, planes_of
from moco_dist.data.store import ArraySource, FileSource, Source
from moco_dist.data.tree import some
from moco_dist.errors import UserError
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World

_PART = 8
"""`data.cache=auto` takes at most one in so many of the bytes that a rank may use."""
_CHUNK = 256
"""Images that a process decodes at a time."""
_LOOKED_AT = 9
"""Images of a folder that are looked at for their size."""


@dataclass(frozen=True)
class DecodedSource(FileSource):
    """A decoded source holds the pixels of a file source whose images are of one size; its views are the same bits."""

    images: Tensor = field(kw_only=True)
    """uint8 [N, C, H, W]; where an image cannot be read, those of the next one that can."""
    replaced: Mapping[int, Unreadable] = field(kw_only=True)
    """The images that cannot be read, by their places."""

    @classmethod
    def of(cls, source: FileSource, images: Tensor, replaced: Mapping[int, Unreadable]) -> DecodedSource:
        """Put the images of a source in place of its files; those that cannot be read are replaced here."""
        readable = np.setdiff1d(np.arange(len(source)), list(replaced))
        if not len(readable):
            raise source.unusable(next(iter(replaced.values())))
        for place in replaced:
            images[place] = images[int(readable[np.searchsorted(readable, place) % len(readable)])]
        fields = {name: getattr(source, name) for name in FileSource.__dataclass_fields__}
        return cls(**fields, images=images, replaced=replaced)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def subset(self, indices: Indices) -> DecodedSource:
        replaced = {new: self.replaced[old] for new, old in enumerate(indices.tolist()) if old in self.replaced}
        return DecodedSource.of(super().subset(indices), rows_of(self.images, indices), replaced)

    def crops(self, indices: Indices, draws: NDArray[np.float32], data: DataSection) -> tuple[Crops, list[Unreadable]]:
        if not devices.runs_ahead(self.device):
            return super().crops(indices, draws, data)
        return self.outline().crops(indices, draws, data)

    def outline(self) -> Outline:
        return Outline.of(self.images, self.replaced)

    def cut(self, boxes: Boxes) -> Tensor:
        return boxes.cut(self.images, crops.crop_files)

    def centred(self, indices: Indices, size: int) -> tuple[Tensor, list[Unreadable]]:
        if not devices.runs_ahead(self.device):
            return super().centred(indices, size)
        return crops.centre_files(rows_of(self.images, indices), size), self.outline().unreadable(indices)

    def _decode(self, place: int, unreadable: list[Unreadable]) -> Planes:
        unreadable += self.outline().unreadable(np.array([place]))
        return planes_of(self.images[place].permute(1, 2, 0).numpy())


class _SeveralSizes(UserError):
    """The images of a folder are of several sizes."""


class _Chunks(Dataset[tuple[Tensor, dict[int, Unreadable]]]):
    """The chunks are a source's decoded images from a place on, uint8 [n, H, W, C], all of one shape.

    With them come the images that cannot be read, by their places; their pixels are black.
    """

    def __init__(self, source: FileSource, end: int, shape: tuple[int, ...]) -> None:
        self.source, self.end, self.shape = source, end, shape

    def __getitem__(self, begin: int) -> tuple[Tensor, dict[int, Unreadable]]:
        places = range(begin, min(begin + _CHUNK, self.end))
        images, unreadable = np.zeros((len(places), *self.shape), dtype=np.uint8), dict[int, Unreadable]()
        for row, place in enumerate(places):
            planes = self.source.attempt(place)
            if isinstance(planes, Unreadable):
                unreadable[place] = planes
            else:
                _check_shape(planes, self.shape)
                images[row] = _pixels(planes)
        return torch.from_numpy(images), unreadable


def keep(source: Source, config: Config, world: World) -> Source:
    """Keep the images of a source on the device or in memory, as `data.cache` says; a collective of all ranks.

    Views are the same bits wherever they are cut. Files that are not kept are decoded whenever they are seen.

    Raises:
        UserError: with `data.cache=memory`, images that do not fit or have several sizes; no image can be decoded.
    """
    cache, steps = config.data.cache, config.optim.steps
    if isinstance(source, ArraySource) and cache != "none" and (device := _place(source.images.numel(), cache, world)):
        return replace(source, images=source.images.to(device))
    if not isinstance(source, FileSource) or cache == "none" or not len(source):
        return source
    if cache == "auto" and steps and steps * config.optim.global_batch < len(source):
        return source  # a run that does not see every image would wait for all of them
    try:
        return _decoded(source, cache, world)
    except _SeveralSizes:
        if cache == "memory":
            raise
        return source


def _decoded(source: FileSource, cache: str, world: World) -> FileSource:
    """Decode all images of a source, each on one rank, and keep them; where they do not fit, return it as it is.

    Raises:
        UserError: on all ranks, as `keep`.
    """
    shape = world.agreed(lambda: _common_shape(source))
    if not shape:
        return source
    size_bytes = len(source) * math.prod(shape)
    device = _place(size_bytes, cache, world)
    if device is None:
        if cache == "memory":
            rule = f"the images take {size_bytes / 1e9:.2g} GB, more than there is for them"
            raise UserError.of("data.cache", cache, rule, "use data.cache=auto")
        return source
    there = "memory" if device.type == "cpu" else "the device's memory"
    world.tell(f"data.cache: {len(source)} images are decoded once, into {size_bytes / 1e6:.0f} MB of {there}")
    sharing = device == world.device  # gathered by way of the device, where there is one
    ranks, rank = (world.size, world.rank) if sharing else (1, 0)
    share = -(-len(source) // ranks)
    mine, unreadable = world.agreed(lambda: _decode_share(source, rank * share, share, shape))
    replaced = {place: image for of_rank in world.gather_objects(unreadable) for place, image in of_rank.items()}
    images = world.all_gather(mine.to(device)) if sharing else mine
    images = images[: len(source)].permute(0, 3, 1, 2)  # [N, C, H, W]
    return DecodedSource.of(source, images if device.type == "cpu" else images.contiguous(), replaced)


def _decode_share(
    source: FileSource, begin: int, share: int, shape: tuple[int, ...]
) -> tuple[Tensor, dict[int, Unreadable]]:
    """Decode so many images from a place on with all cores of this rank, [share, H, W, C]. Raises UserError."""
    end = min(begin + share, len(source))
    images, unreadable = torch.zeros(share, *shape, dtype=torch.uint8), dict[int, Unreadable]()
    steps = range(begin, end, _CHUNK)
    workers = min(devices.cores(), len(steps))
    chunks = loader.make_loader(_Chunks(source, end, shape), steps, workers if workers > 1 else 0, torch.device("cpu"))
    for start, (pixels, not_read) in zip(steps, chunks, strict=True):
        images[start - begin :][: len(pixels)] = pixels
        unreadable |= not_read
    return images, unreadable


def _place(size_bytes: int, cache: str, world: World) -> torch.device | None:
    """Choose where so many bytes are kept on every rank: on its device, else in memory; None where they do not fit."""
    part = _PART if cache == "auto" else 1
    for device in (world.device, torch.device("cpu")):
        on_device = device.type == "cpu" or crops.pil_is_as_known()
        if all(world.gather_objects(on_device and size_bytes <= devices.memory(device) // part)):
            return device
    return None


def _common_shape(source: FileSource) -> tuple[int, ...]:
    """Look at some images, and return the shape of all, [H, W, C]; empty where none of them can be read.

    Raises:
        UserError: they are of several sizes.
    """
    shape: tuple[int, ...] = ()
    for planes in map(source.attempt, some(range(len(source)), _LOOKED_AT)):
        if not isinstance(planes, Unreadable):
            shape = shape or _pixels(planes).shape
            _check_shape(planes, shape)
    return shape


def _check_shape(planes: Planes, shape: tuple[int, ...]) -> None:
    width, height = planes[0].size
    if (height, width) != shape[:2]:
        rule = f"the images are of several sizes, {shape[1]}x{shape[0]} and {width}x{height} among them"
        raise _SeveralSizes.of("data.cache", "memory", rule, "use data.cache=auto, which leaves them on disk")


def _pixels(planes: Planes) -> NDArray[np.uint8]:
    """Return the pixels of a decoded image, [H, W, C]."""
    return np.dstack([np.asarray(plane) for plane in planes])
