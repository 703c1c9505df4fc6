"""Draw what the encoders see."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moco_dist.data.store import PixelStatistics


def pairs_picture(one: Tensor, two: Tensor, statistics: PixelStatistics, count: int = 8) -> NDArray[np.uint8]:
    """Draw both views of the first images, one above the other: [2 S, count S, C]."""
    views = torch.stack([one[:count], two[:count]]).double().cpu()  # [2, n, C, S, S]
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in statistics)
    pixels = (views * std + mean).clamp(0, 1).permute(0, 3, 1, 4, 2)  # [2, S, n, S, C]
    rows, side, columns, _, channels = pixels.shape
    return (255 * pixels).round().reshape(rows * side, columns * side, channels).numpy().astype(np.uint8)
