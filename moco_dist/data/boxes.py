"""Place views on the host, and cut them out where the images lie, which may be a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_dist.config.data_section import DataSection
from moco_dist.data.crops import crop_boxes
from moco_dist.data.decode import Unreadable
from moco_dist.ranks import devices

Indices = NDArray[np.int64]


class Boxes(NamedTuple):
    """Boxes say what to cut out of a source's images where they lie, on a device."""

    places: Tensor
    """int64 [n] places of the images in the source."""
    boxes: Tensor
    """int64 [V, n, 4] top, left, height, width in pixels, for V views of each image."""
    size: int
    """Side S of the views in pixels."""
    decode: str
    """The value of `data.decode`, which says how crops of files are resized."""

    def cut(self, images: Tensor, crop: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
        """Cut the views out of the images, uint8 [V, n, C, S, S], with one call of a function that crops a batch."""
        if devices.runs_ahead(images.device):  # the stream that cuts is not the one by which the images came
            images.record_stream(devices.of(images.device).current_stream(images.device))
        of_views = rows_of(images, self.places).repeat(len(self.boxes), 1, 1, 1)
        views = crop(of_views, self.boxes.flatten(0, 1), self.size)
        return views.view(*self.boxes.shape[:2], *views.shape[1:])


@dataclass(frozen=True)
class Outline:
    """An outline is all that it takes to place crops in images of one size: what data workers know of a device's."""

    images: int
    """The number of images in the source."""
    height: int
    """The height of each image in pixels."""
    width: int
    replaced: Mapping[int, Unreadable] = field(default_factory=dict)
    """The images that cannot be read, by their places."""

    @classmethod
    def of(cls, images: Tensor, replaced: Mapping[int, Unreadable] | None = None) -> Outline:
        """Return the outline of images [N, C, H, W]."""
        height, width = images.shape[2:]
        return cls(len(images), height, width, replaced or {})

    def __len__(self) -> int:
        return self.images

    def crops(self, indices: Indices, draws: NDArray[np.float32], data: DataSection) -> tuple[Boxes, list[Unreadable]]:
        """Place random crops; arguments and result are those of `Source.crops`."""
        height, width = (np.full(len(indices), side) for side in (self.height, self.width))
        boxes = [crop_boxes(view, height, width, data.crop_scale, data.crop_ratio) for view in draws]
        placed = Boxes(torch.from_numpy(indices), torch.from_numpy(np.stack(boxes)), data.image_size, data.decode)
        return placed, self.unreadable(indices)

    def unreadable(self, indices: Indices) -> list[Unreadable]:
        """Return which of some images cannot be read."""
        return [self.replaced[place] for place in indices.tolist() if place in self.replaced]


Crops = Tensor | Boxes
"""Crops of images: their pixels, or where to cut them out."""


def rows_of(tensor: Tensor, places: Tensor | Indices) -> Tensor:
    """Select rows [n, ...] of a tensor on any device by places on the host, without waiting for the device."""
    return tensor.index_select(0, torch.as_tensor(places).to(tensor.device, non_blocking=True))
