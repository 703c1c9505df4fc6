"""Compute the features of a source's images, each on one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moco_dist.config.data_section import DataSection
from moco_dist.data import loader, store
from moco_dist.data.augment import Augment
from moco_dist.data.decode import Unreadable
from moco_dist.ranks import devices, watchdog
from moco_dist.ranks.collectives import World

# The revision is part of the key of every cell: raise it whenever the features of an image change, be it by the way it
# is decoded, cropped, normalised, augmented or encoded.
REVISION = 2

CHUNK = 256
"""Images computed together. Fixed, so that an image's features do not depend on the number of ranks."""


Encode = Callable[[Tensor], Tensor]
"""Computes features [n, D], or other outputs, of normalised images [n, C, S, S]."""


class Features(NamedTuple):
    """Features are the normalised outputs for a source's images: all in order on every rank, or a rank's share."""

    rows: Tensor
    """[n, D], on the device."""
    labels: Tensor
    """[n], on the CPU."""
    indices: Tensor
    """[n] indices of their images in the source, on the CPU."""

    def gathered(self, world: World) -> Features:
        """Put the ranks' shares together, in the order of the source."""
        if world.size == 1:
            return self
        rows, labels, indices = (in_order(share, self.indices, world) for share in self)
        return Features(rows, labels.cpu(), indices.cpu())


class _Chunks(torch.utils.data.Dataset[tuple[Tensor, Tensor, list[Unreadable]]]):
    """The chunks are a source's images in order, CHUNK at a time, with their indices and the replaced ones."""

    def __init__(self, source: store.Source, size: int) -> None:
        self.source, self.size = source, size

    def __len__(self) -> int:
        return -(-len(self.source) // CHUNK)

    def __getitem__(self, chunk: int) -> tuple[Tensor, Tensor, list[Unreadable]]:
        indices = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.source)))
        images, replaced = self.source.centred(indices, self.size)
        return images, torch.from_numpy(indices), replaced


@torch.no_grad()
def extract(
    encode: Encode, source: store.Source, world: World, data: DataSection, augmentation: Augment, dtype: torch.dtype
) -> tuple[Features, list[Unreadable]]:
    """Compute this rank's share of a source's features; shares differ in size, no image is in two.

    Args:
        encode: normalised images [n, C, S, S] to features [n, D], in evaluation mode.
        source: the images, labelled.
        world: the ranks; rank r takes every chunk r, r + size, ...
        data: the side S of the images, and processes that decode.
        augmentation: of the run, for its plain view.
        dtype: of the images.

    Returns:
        The features, in float32 or wider, and the images that could not be read and were replaced.
    """
    assert source.labels is not None
    chunks, unreadable = _Chunks(source, data.image_size), list[Unreadable]()
    mine = range(world.rank, len(chunks), world.size)

    def features_of(images: Tensor) -> Tensor:
        out = encode(augmentation.plain(images.to(world.device, non_blocking=True)).to(dtype))
        return F.normalize(out.to(torch.promote_types(out.dtype, torch.float32)), dim=1)

    rows, indices = [], []
    batches: Iterable[tuple[Tensor, Tensor, list[Unreadable]]] = map(chunks.__getitem__, mine)
    if not devices.runs_ahead(source.device):
        batches = loader.make_loader(chunks, mine, data.workers, world.device)
    with world.own_mistakes():
        for images, which, replaced in batches:
            rows.append(features_of(images))
            indices.append(which)
            unreadable += replaced
            watchdog.beat()
    if not rows:  # more ranks than chunks: an empty share of the right width
        rows, indices = [features_of(chunks[0][0][:1])[:0]], [torch.empty(0, dtype=torch.long)]
    of_rows = torch.cat(indices)
    return Features(torch.cat(rows), torch.from_numpy(source.labels)[of_rows], of_rows), unreadable


def in_order(rows: Tensor, indices: Tensor, world: World) -> Tensor:
    """Put all ranks' shares [n, ...] together in the order of their indices [n]; the same on all ranks."""
    rows, indices = (gather_rows(share, world) for share in (rows, indices))
    return rows[indices.to(rows.device).argsort()]


def gather_rows(tensor: Tensor, world: World) -> Tensor:
    """Concatenate the ranks' shares [n, ...] whose n differs between the ranks."""
    if world.size == 1:
        return tensor
    tensor = tensor.to(world.device)
    counts = world.gather_objects(len(tensor))
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    gathered = world.all_gather(padded)
    return torch.cat([g[:n] for g, n in zip(gathered.chunk(world.size), counts, strict=True)])
