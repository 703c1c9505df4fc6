"""Turn an image into the input of an encoder, as the evaluation of its run does."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from moco_dist.config import Config
from moco_dist.config.section import MOST_CHANNELS, Interval
from moco_dist.data import augment, crops
from moco_dist.data.decode import Planes, decode, planes_of_array, planes_of_image
from moco_dist.data.image_file import Member
from moco_dist.data.pixel_statistics import PIXEL_STATISTICS, PixelStatistics, general_statistics
from moco_dist.ranks.torch_modes import plain_modes

ImageLike = str | os.PathLike[str] | Member | Image.Image | NDArray[Any] | Tensor
"""An image is the path of a file, an image in a shard, a PIL image, or pixels, [H, W], [H, W, C] or [C, H, W]."""

_LARGEST_SIDE = 4096


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing resizes an image, cuts out its centre, and normalises it; call it with an image.

    Pixels of 8 bits are taken as they are; values of more bits are scaled as `docs/images.md` says.

    Attributes:
        image_size: side S of the square that the encoder sees, in pixels.
        resize: the shorter side of the image in pixels before the square is cut out of it: S, or else S * 256/224.
        mean: of each channel, of pixels in [0, 1].
        std: of each channel.
        value_range: the values of more than 8 bits that become black and white; None: 0 to 65535, and 0 to 1 of floats.
    """

    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: Interval | None = None

    @classmethod
    def of(cls, config: Config) -> Preprocessing:
        """Return the preprocessing of a run's evaluation, by its resolved config."""
        data = config.data
        in_memory = data.source != "imagefolder"  # whose images are of one size, and are not cut
        statistics = PIXEL_STATISTICS.get(data.source) or general_statistics(data.channel_count)
        if data.mean and data.std:
            statistics = PixelStatistics(data.mean, data.std)
        resize = data.image_size if in_memory else crops.shorter_side(data.image_size)
        return cls(data.image_size, resize, *statistics, data.value_range)

    @classmethod
    def general(cls, image_size: int, channels: int) -> Preprocessing:
        """Return the customary preprocessing for an encoder that has none of its own: ImageNet's statistics."""
        return cls(image_size, crops.shorter_side(image_size), *general_statistics(channels))

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Preprocessing | None:
        """Read a preprocessing that `fields` has written; None where it is damaged."""
        try:
            numbers = [tuple(map(float, fields[name])) for name in ("mean", "std")]
            size, resize = (int(fields[name]) for name in ("image_size", "resize"))
            low_and_high = fields.get("value_range")
            value_range = (float(low_and_high[0]), float(low_and_high[1])) if low_and_high else None
        except (KeyError, TypeError, ValueError, OverflowError, IndexError):
            return None
        mean, std = numbers
        sound = 0 < size <= resize <= _LARGEST_SIDE and min(std, default=0.0) > 0
        sound = sound and 0 < len(mean) == len(std) <= MOST_CHANNELS and bool(np.isfinite([*mean, *std]).all())
        sound = sound and (value_range is None or -math.inf < value_range[0] < value_range[1] < math.inf)
        return cls(size, resize, mean, std, value_range) if sound else None

    def fields(self) -> dict[str, Any]:
        """Return the preprocessing as JSON holds it."""
        return asdict(self)

    def at(self, image_size: int) -> Preprocessing:
        """Return this preprocessing for squares of another side, which hold as much of the image."""
        customary = self.resize == crops.shorter_side(self.image_size)
        resize = crops.shorter_side(image_size) if customary else round(image_size * self.resize / self.image_size)
        return replace(self, image_size=image_size, resize=resize)

    @property
    def channels(self) -> int:
        """Return the number of channels of an image."""
        return len(self.mean)

    @plain_modes()
    def pixels(self, image: ImageLike) -> Tensor:
        """Resize an image and cut out its centre.

        Returns:
            uint8 [C, S, S]

        Raises:
            ValueError: it has other channels, or values out of range.
            OSError: a file cannot be read or decoded; decoders also raise errors of their own.
        """
        planes = self._planes(image)
        if self.resize != self.image_size:
            return torch.cat([crops.centre(plane, self.image_size, self.resize) for plane in planes])
        pixels = torch.cat([torch.from_numpy(np.array(plane)).view(*plane.size[::-1], -1) for plane in planes], dim=2)
        return crops.centre_batch(pixels.permute(2, 0, 1)[None], self.image_size)[0].contiguous()

    @plain_modes()
    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale pixels, uint8 [..., C, S, S], to [0, 1] and normalise them: float32 of the same shape."""
        return augment.normalise_(
            pixels.to(torch.float32, copy=True).div_(255), *map(augment.of_channels, (self.mean, self.std))
        )

    def __call__(self, image: ImageLike) -> Tensor:
        """Prepare an image: float32 [C, S, S]. Raises as `pixels`."""
        return self.normalise(self.pixels(image))

    def _planes(self, image: ImageLike) -> Planes:
        """Decode an image of any kind. Raises as `pixels`."""
        if isinstance(image, str | os.PathLike):
            return decode(Path(image), self.channels, self.value_range)
        if isinstance(image, Member):
            return decode(image, self.channels, self.value_range)
        if isinstance(image, Image.Image):
            return planes_of_image(image, self.channels, self.value_range)
        if isinstance(image, Tensor):
            image = image.detach().cpu()
            values = (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # which NumPy does not know
        else:
            values = np.asarray(image)
        if values.ndim not in (2, 3) or not values.size:
            raise ValueError(f"an image has the shape [H, W], [H, W, C] or [C, H, W], not {list(values.shape)}")
        return planes_of_array(values, self.channels, self.value_range)
