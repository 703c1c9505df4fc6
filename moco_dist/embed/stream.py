"""Compute the features of a folder's images in one pass, a chunk on each rank at a time, in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moco_dist.data import loader
from moco_dist.data.decode import Unreadable
from moco_dist.data.store import FileSource
from moco_dist.encoders.choices import Layer
from moco_dist.encoders.load import PretrainedEncoder
from moco_dist.encoders.preprocessing import Preprocessing
from moco_dist.errors import UserError, printable
from moco_dist.ranks import watchdog
from moco_dist.ranks.collectives import World


class Rows(NamedTuple):
    """The rows are the features of some images, in the order of the folder."""

    places: NDArray[np.int64]
    """[n] places of the images in the folder."""
    features: NDArray[np.float32]
    """[n, D]"""


class _Chunk(NamedTuple):
    """A chunk is the images that one rank computes at once."""

    pixels: Tensor
    """uint8 [n, C, S, S]; zeros where an image cannot be read."""
    readable: Tensor
    """bool [n]"""
    unreadable: list[tuple[int, Unreadable]]
    """The places of the images that cannot be read, and why."""


class _Chunks(torch.utils.data.Dataset[_Chunk]):
    """The chunks are a folder's images in order, of fixed sizes, whatever can be read of them."""

    def __init__(self, images: FileSource, preprocess: Preprocessing, size: int) -> None:
        self.images, self.preprocess, self.size = images, preprocess, size

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __getitem__(self, chunk: int) -> _Chunk:
        places = range(chunk * self.size, min((chunk + 1) * self.size, len(self.images)))
        side = self.preprocess.image_size
        pixels = torch.zeros(len(places), self.preprocess.channels, side, side, dtype=torch.uint8)
        readable, unreadable = torch.zeros(len(places), dtype=torch.bool), []
        for row, place in enumerate(places):
            image = self.images.attempt(place, self.preprocess.pixels)
            if isinstance(image, Unreadable):
                name = os.fsdecode(self.images.names[place])
                unreadable.append((place, image._replace(name=name)))
            else:
                pixels[row], readable[row] = image, True
        return _Chunk(pixels, readable, unreadable)


class Stream:
    """A stream yields the features of a folder's images, the same on every rank; iterate over it once.

    Images that cannot be decoded are left out: another image in their place would be a wrong result.

    Args:
        images: of the folder.
        encoder: what computes features, on the device of the world.
        layer: the features of the backbone, or the output of the head.
        normalise: whether each feature has the length 1.
        world: the ranks; rank r takes every chunk r, r + size, ...
        batch: images of a chunk.
        workers: processes that decode.

    Iterating raises:
        UserError: a feature is not finite, or no image can be read; on all ranks.
    """

    def __init__(
        self,
        images: FileSource,
        encoder: PretrainedEncoder,
        world: World,
        *,
        layer: Layer = "backbone",
        normalise: bool = False,
        batch: int,
        workers: int | Literal["auto"],
    ) -> None:
        self._chunks, self._world, self._workers = _Chunks(images, encoder.preprocess, batch), world, workers
        self._encoder, self._layer, self._normalise = encoder, layer, normalise
        self.dim = encoder.feature_dim if layer == "backbone" else encoder.model.dim
        """The length D of a feature."""
        self.unreadable = list[Unreadable]()
        """The images that were left out, by their names below the folder; complete when the iteration has ended."""
        self.round = batch * world.size
        """The number of images that all ranks compute at once."""

    def __len__(self) -> int:
        """Return the number of images of the folder."""
        return len(self._chunks.images)

    def __iter__(self) -> Iterator[Rows]:
        world, chunks, size = self._world, self._chunks, self._chunks.size
        mine = range(world.rank, len(chunks), world.size)
        unreadable, count = list[tuple[int, Unreadable]](), 0
        workers = self._workers if len(mine) > 1 else 0  # a lone chunk is not made ahead of anything
        batches = iter(loader.make_loader(chunks, mine, workers, world.device))
        for first in range(0, len(chunks), world.size):
            block = torch.zeros(size, self.dim + 1, device=world.device)  # [size, D+1], the last column: is a row
            if (chunk := next(batches, None)) is not None:
                block[: len(chunk.pixels), :-1] = self._features(chunk.pixels)
                block[: len(chunk.pixels), -1] = chunk.readable.to(world.device, torch.float32)
                unreadable += chunk.unreadable
            gathered = world.all_gather(block).cpu().numpy()  # of all ranks, in the order of the folder
            rows = np.flatnonzero(gathered[:, -1])
            count += len(rows)
            yield self._checked(Rows(first * size + rows, np.ascontiguousarray(gathered[rows, :-1])))
            watchdog.beat()
        of_ranks = world.gather_objects(unreadable)
        self.unreadable = [image for _, image in sorted(one for of_rank in of_ranks for one in of_rank)]
        if not count:
            rule = f"none of its {len(self)} images can be decoded; {self.unreadable[0]}"
            raise UserError.of("FOLDER", self._chunks.images.folder, rule, "mend the files, or give another folder")

    def _features(self, pixels: Tensor) -> Tensor:
        on_device = pixels.to(self._world.device, non_blocking=True)
        return features_of(self._encoder, on_device, self._layer, self._normalise)

    def _checked(self, rows: Rows) -> Rows:
        """Return the rows. Raises UserError, on all ranks, where a feature is not finite."""
        finite = np.isfinite(rows.features).all(axis=1)
        if not finite.all():
            name = printable(os.fsdecode(self._chunks.images.names[rows.places[~finite][0]]))
            rule = f"the features of {(~finite).sum()} images are not finite, such as those of {name}"
            fix = "look at the run's loss; take an earlier checkpoint by --step"
            raise UserError.of("RUN_DIR|WEIGHTS", self._encoder.origin.path, rule, fix)
        return rows


@torch.no_grad()
def features_of(encoder: PretrainedEncoder, pixels: Tensor, layer: Layer, normalise: bool) -> Tensor:
    """Compute features, float32 [n, D], of pixels, uint8 [n, C, S, S], on the device of both."""
    images = encoder.preprocess.normalise(pixels)
    features = encoder.features(images) if layer == "backbone" else encoder.network(images)
    features = features.to(torch.float32)
    return F.normalize(features, dim=1) if normalise else features
