"""Compute the features of a source's images, each on one rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from moco_dist.data.augment import Augment
from moco_dist.data.decode import Unreadable
from moco_dist.data.loader import make_loader
from moco_dist.data.store import Source
from moco_dist.evaluate import knn
from moco_dist.ranks import watchdog
from moco_dist.ranks.collectives import World

# The revision is part of the key of every cell: raise it whenever the features of an image change, be it by the way it
# is decoded, cropped, normalised, augmented or encoded.
REVISION = 2

CHUNK = 256
"""Images computed together. Fixed, so that an image's features do not depend on the number of ranks."""


class _Chunks(Dataset[tuple[Tensor, Tensor, list[Unreadable]]]):
    """The chunks are a source's images in order, CHUNK at a time, with their indices and the replaced ones."""

    def __init__(self, source: Source, size: int) -> None:
        self.source, self.size = source, size

    def __len__(self) -> int:
        return -(-len(self.source) // CHUNK)

    def __getitem__(self, chunk: int) -> tuple[Tensor, Tensor, list[Unreadable]]:
        indices = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.source)))
        images, replaced = self.source.centred(indices, self.size)
        return images, torch.from_numpy(indices), replaced


@torch.no_grad()
def extract(
    encode: Callable[[Tensor], Tensor],
    source: Source,
    world: World,
    *,
    size: int,
    augmentation: Augment,
    dtype: torch.dtype,
    workers: int = 0,
    unreadable: list[Unreadable] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute this rank's share of a source's features; shares differ in size, no image is in two.

    Args:
        encode: normalised images [n, C, size, size] to features [n, D], in evaluation mode.
        source: the images.
        world: the ranks; rank r takes every chunk r, r + size, ...
        size: side of the images.
        augmentation: of the run, for its plain view.
        dtype: of the images.
        workers: processes that decode.
        unreadable: to it are added this rank's images that could not be read and were replaced.

    Returns:
        [n, D] features, normalised, in float32 or wider, and [n] the indices of their images.
    """
    chunks = _Chunks(source, size)
    mine = range(world.rank, len(chunks), world.size)

    def features_of(images: Tensor) -> Tensor:
        out = encode(augmentation.plain(images.to(world.device, non_blocking=True)).to(dtype))
        return F.normalize(out.to(torch.promote_types(out.dtype, torch.float32)), dim=1)

    features, indices = [], []
    for images, which, replaced in make_loader(chunks, mine, workers, world.device):
        features.append(features_of(images))
        indices.append(which)
        if unreadable is not None:
            unreadable += replaced
        watchdog.beat()
    if not features:  # more ranks than chunks: an empty share of the right width
        return features_of(chunks[0][0][:1])[:0], torch.empty(0, dtype=torch.long)
    return torch.cat(features), torch.cat(indices)


def in_order(rows: Tensor, indices: Tensor, world: World) -> Tensor:
    """Put all ranks' shares [n, ...] together in the order of their indices [n]; the same on all ranks."""
    rows, indices = (knn.gather_rows(share, world) for share in (rows, indices))
    return rows[indices.to(rows.device).argsort()]
