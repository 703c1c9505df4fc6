"""Place views on the host, and cut them out where the images lie, which may be a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_dist.config.data_section import DataSection
from moco_dist.data.crops import crop_boxes
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

    @classmethod
    def draw(cls, images: Tensor, places: Indices, draws: NDArray[np.float32], data: DataSection) -> Boxes:
        """Place some random crops in some of the images [N, C, H, W]; the other arguments are those of `crops`."""
        height, width = (np.full(len(places), side) for side in images.shape[2:])
        boxes = [crop_boxes(view, height, width, data.crop_scale, data.crop_ratio) for view in draws]
        return cls(torch.from_numpy(places), torch.from_numpy(np.stack(boxes)), data.image_size)

    def cut(self, images: Tensor, crop: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
        """Cut the views out of the images, uint8 [V, n, C, S, S], all with one call of a function of `data.crops`."""
        if devices.runs_ahead(images.device):  # the stream that cuts is not the one by which the images came
            images.record_stream(devices.of(images.device).current_stream(images.device))
        of_views = rows_of(images, self.places).repeat(len(self.boxes), 1, 1, 1)
        views = crop(of_views, self.boxes.flatten(0, 1), self.size)
        return views.view(*self.boxes.shape[:2], *views.shape[1:])


Crops = Tensor | Boxes
"""Crops of images: their pixels, or where to cut them out."""


def rows_of(tensor: Tensor, places: Tensor | Indices) -> Tensor:
    """Select rows [n, ...] of a tensor on any device by places on the host, without waiting for the device."""
    return tensor.index_select(0, torch.as_tensor(places).to(tensor.device, non_blocking=True))
