"""Draw what the encoders see."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_dist.data.store import PixelStatistics, shown_channels


def pairs_picture(one: Tensor, two: Tensor, statistics: PixelStatistics, count: int = 8) -> NDArray[np.uint8]:
    """Draw both views of the first images, one above the other: [2 S, count S, 1 or 3]."""
    views = torch.stack([one[:count], two[:count]]).double().cpu()  # [2, n, C, S, S]
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in statistics)
    views = (views * std + mean).clamp(0, 1)
    pixels = views[:, :, : shown_channels(views.shape[2])].permute(0, 3, 1, 4, 2)  # [2, S, n, S, 1 or 3]
    rows, side, columns, _, channels = pixels.shape
    return (255 * pixels).round().reshape(rows * side, columns * side, channels).numpy().astype(np.uint8)
