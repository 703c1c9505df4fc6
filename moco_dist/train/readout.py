"""Bring figures, and a picture of what the encoders see, from the device to the host."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moco_dist.data.decode import Unreadable
from moco_dist.data.pixel_statistics import PixelStatistics, shown_channels
from moco_dist.data.views import Views
from moco_dist.engine.figures import Figures
from moco_dist.ranks import devices


class Reading(NamedTuple):
    """A reading is what the host learns of a step."""

    step: int
    """Counted from 1."""
    figures: Figures
    """The figures, which are on the host and can be read without a wait."""
    unreadable: list[Unreadable]
    """This rank's images that were replaced."""


class Readout:
    """The readout brings figures to the host. On a GPU it reads them a step later, so that work never runs out."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: list[tuple[int, Figures, list[Unreadable], torch.Event | None]] = []

    def push(self, step: int, figures: Figures, unreadable: list[Unreadable]) -> None:
        """Start to copy the figures of a step to the host."""
        ready = devices.of(self._device).Event() if devices.runs_ahead(self._device) else None
        self._waiting.append((step, figures.to_host(), unreadable, ready))
        if ready:
            ready.record()

    def pop(self, *, everything: bool) -> Iterator[Reading]:
        """Yield what is due to be read, or everything."""
        while len(self._waiting) > (1 if devices.runs_ahead(self._device) and not everything else 0):
            step, figures, unreadable, ready = self._waiting.pop(0)
            if ready:
                ready.synchronize()
            yield Reading(step, figures, unreadable)


def pairs_picture(views: Views, statistics: PixelStatistics, count: int = 8) -> NDArray[np.uint8]:
    """Draw both views of the first images, one above the other: [2 S, count S, 1 or 3]."""
    images = torch.stack([views.images(view)[:count] for view in range(2)]).double().cpu()  # [2, n, C, S, S]
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in statistics)
    images = (images * std + mean).clamp(0, 1)
    pixels = images[:, :, : shown_channels(images.shape[2])].permute(0, 3, 1, 4, 2)  # [2, S, n, S, 1 or 3]
    rows, side, columns, _, channels = pixels.shape
    return (255 * pixels).round().reshape(rows * side, columns * side, channels).numpy().astype(np.uint8)
