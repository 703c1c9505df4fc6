"""Decode the small images of a folder once, and keep them where they are cropped: on the device, or in memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from moco_dist.config import Config
from moco_dist.config.data_section import DataSection
from moco_dist.data import crops, loader, photographs, resizes
from moco_dist.data.boxes import Boxes, Crops, Indices, Outline, rows_of
from moco_dist.data.decode import Unreadable, planes_of
from moco_dist.data.image_file import ImageFile
from moco_dist.data.store import ArraySource, FileSource, Source
from moco_dist.data.tree import some
from moco_dist.errors import UserError
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World

Read = Callable[[ImageFile], photographs.Pixels]
"""Decodes a file, [H, W, C]."""

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
        boxes, unreadable = self.outline().crops(indices, draws, data)
        if devices.runs_ahead(self.device):
            return boxes, unreadable
        views = torch.empty(*draws.shape[:2], data.image_size, data.image_size, self.channels, dtype=torch.uint8)
        for column, place in enumerate(indices.tolist()):
            pixels = self._pixels(place)
            for view, box in zip(views[:, column], boxes.boxes[:, column].tolist(), strict=True):
                view.copy_(resizes.cut(pixels, box, data.image_size, data.decode))
        return views.movedim(4, 2), unreadable

    def outline(self) -> Outline:
        return Outline.of(self.images, self.replaced)

    def cut(self, boxes: Boxes) -> Tensor:
        return boxes.cut(self.images, functools.partial(resizes.crop, decode=boxes.decode))

    def centred(self, indices: Indices, size: int) -> tuple[Tensor, list[Unreadable]]:
        if devices.runs_ahead(self.device):
            images = resizes.centres(rows_of(self.images, indices), size)
        else:
            alone = (planes_of(self._pixels(place)) for place in indices.tolist())
            images = torch.stack([torch.cat([crops.centre(plane, size) for plane in planes]) for planes in alone])
        return images, self.outline().unreadable(indices)

    def _pixels(self, place: int) -> photographs.Pixels:
        """Return the pixels of an image in memory, [H, W, C]."""
        return self.images[place].permute(1, 2, 0).numpy()


class _Chunks(Dataset[tuple[Tensor, dict[int, Unreadable]]]):
    """The chunks are a source's decoded images from a place on, uint8 [n, H, W, C], all of one shape.

    With them come the images that cannot be read, by their places; their pixels are black.
    """

    def __init__(self, source: FileSource, decode: str, end: int, shape: tuple[int, ...]) -> None:
        self.source, self.decode, self.end, self.shape = source, decode, end, shape

    def __getitem__(self, begin: int) -> tuple[Tensor, dict[int, Unreadable]]:
        places = range(begin, min(begin + _CHUNK, self.end))
        images, unreadable = np.zeros((len(places), *self.shape), dtype=np.uint8), dict[int, Unreadable]()
        for row, place in enumerate(places):
            pixels = self.source.attempt(place, _reader(self.source, self.decode))
            if isinstance(pixels, Unreadable):
                unreadable[place] = pixels
                continue
            _check_shape(pixels, self.shape)
            if self.source.channels == 1:  # a few looked-at images do not tell of a colour JPEG among gray ones
                _check_pixels(self.source, place, pixels, self.decode)
            images[row] = pixels
        return torch.from_numpy(images), unreadable


def keep(source: Source, config: Config, world: World) -> Source:
    """Keep the images of a source on the device or in memory, as `data.cache` says; a collective of all ranks.

    Views are the same bits wherever they are cut. Files that are not kept are decoded whenever they are seen.

    Raises:
        UserError: with `data.cache=memory`, images of several sizes, or that do not fit or are too large to be kept.
    """
    cache, steps = config.data.cache, config.optim.steps
    if isinstance(source, ArraySource) and cache != "none" and (device := _place(source.images.numel(), cache, world)):
        return replace(source, images=source.images.to(device))
    if not isinstance(source, FileSource) or cache == "none" or not len(source):
        return source
    if cache == "auto" and steps and steps * config.optim.global_batch < len(source):
        return source  # a run that does not see every image would wait for all of them
    try:
        return _decoded(source, config.data, world)
    except UserError:
        if cache == "memory":
            raise
        return source


def note(source: Source) -> str:
    """Say where the decoded images of a source are kept; nothing of other sources."""
    if not isinstance(source, DecodedSource):
        return ""
    there = "memory" if source.device.type == "cpu" else "the device's memory"
    return f"data.cache: {len(source)} images were decoded into {source.images.numel() / 1e6:.0f} MB of {there}"


def _decoded(source: FileSource, data: DataSection, world: World) -> FileSource:
    """Decode all images of a source, each on one rank, and keep them. Raises UserError, on all ranks, as `keep`."""
    shape = world.agreed(lambda: _shape(source, data))
    if not shape:
        return source
    size_bytes = len(source) * math.prod(shape)
    device = _place(size_bytes, data.cache, world, of_files=True)
    if device is None:
        raise _mistake(f"the images take {size_bytes / 1e9:.2g} GB, more than there is for them")
    sharing = device == world.device  # gathered by way of the device, where there is one
    ranks, rank = (world.size, world.rank) if sharing else (1, 0)
    share = -(-len(source) // ranks)
    chunks = _Chunks(source, data.decode, min((rank + 1) * share, len(source)), shape)
    mine, unreadable = world.agreed(lambda: _decode_share(chunks, rank * share, share))
    replaced = {place: image for of_rank in world.gather_objects(unreadable) for place, image in of_rank.items()}
    images = world.all_gather(mine.to(device)) if sharing else mine
    images = images[: len(source)].permute(0, 3, 1, 2)  # [N, C, H, W]
    return DecodedSource.of(source, images if device.type == "cpu" else images.contiguous(), replaced)


def _decode_share(chunks: _Chunks, begin: int, share: int) -> tuple[Tensor, dict[int, Unreadable]]:
    """Decode so many images from a place on with all cores of this rank, [share, H, W, C]. Raises UserError."""
    images, unreadable = torch.zeros(share, *chunks.shape, dtype=torch.uint8), dict[int, Unreadable]()
    steps = range(begin, chunks.end, _CHUNK)
    workers = min(devices.cores(), len(steps))
    loaded = loader.make_loader(chunks, steps, workers if workers > 1 else 0, torch.device("cpu"))
    for start, (pixels, not_read) in zip(steps, loaded, strict=True):
        images[start - begin :][: len(pixels)] = pixels
        unreadable |= not_read
    return images, unreadable


def _place(size_bytes: int, cache: str, world: World, *, of_files: bool = False) -> torch.device | None:
    """Choose where so many bytes are kept on every rank: on its device, else in memory; None where they do not fit.

    Images of files are on a device only if their crops get the same bits there.
    """
    part = _PART if cache == "auto" else 1
    for device in (world.device, torch.device("cpu")):
        is_suited = not (of_files and devices.runs_ahead(device)) or resizes.are_as_known()
        if all(world.gather_objects(is_suited and size_bytes <= devices.memory(device) // part)):
            return device
    return None


def _shape(source: FileSource, data: DataSection) -> tuple[int, ...]:
    """Look at some images, and return the shape of all, [H, W, C]; empty where none of them can be read.

    Raises:
        UserError: they are of several sizes, or kept images would give other pixels than their files.
    """
    shape: tuple[int, ...] = ()
    for place in some(range(len(source)), _LOOKED_AT):
        pixels = source.attempt(place, _reader(source, data.decode))
        if isinstance(pixels, Unreadable):
            continue
        shape = shape or pixels.shape
        _check_shape(pixels, shape)
        _check_pixels(source, place, pixels, data.decode)
    if shape and data.decode != "pillow" and photographs.may_be_reduced(shape[0], shape[1], data.image_size):
        rule = f"with data.decode={data.decode}, images of {shape[1]}x{shape[0]} are decoded at a reduced scale"
        raise _mistake(f"{rule} for crops of {data.image_size}")
    return shape


def _reader(source: FileSource, decoder: str) -> Read:
    """Return what reads a whole file, to the pixels that `data.decode` gives crops."""
    return functools.partial(
        photographs.by_decode if decoder == "pillow" else photographs.whole,
        channels=source.channels,
        value_range=source.value_range,
    )


def _check_shape(pixels: photographs.Pixels, shape: tuple[int, ...]) -> None:
    """Refuse an image of another shape. Raises UserError."""
    if pixels.shape != shape:
        sizes = [f"{width}x{height}" for height, width, _ in (shape, pixels.shape)]
        raise _mistake(f"the images are of several sizes, {sizes[0]} and {sizes[1]} among them")


def _check_pixels(source: FileSource, place: int, pixels: photographs.Pixels, decode: str) -> None:
    """Refuse an image that the evaluation, which takes Pillow, would see with other pixels. Raises UserError."""
    if decode == "pillow" or not photographs.is_jpeg(source.file(place)):
        return
    of_pillow = source.attempt(place, _reader(source, "pillow"))
    if not isinstance(of_pillow, Unreadable) and not np.array_equal(pixels, of_pillow):
        raise _mistake(f"with data.decode={decode}, crops have other pixels than the evaluation's images")


def _mistake(rule: str) -> UserError:
    return UserError.of("data.cache", "memory", rule, "use data.cache=auto, which leaves them on disk")
