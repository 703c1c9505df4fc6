"""The augmentation is compared between devices on these images, recipes and single operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moco_dist.config.data_section import DataSection
from moco_dist.data import operations
from moco_dist.data.augment import Recipe

WARP = {"rotation_degrees": 20, "shear_degrees": 15, "elastic_pixels": 1.5}
RECIPES: dict[str, Recipe] = {
    **{name: Recipe.of(DataSection(augmentation=name)) for name in ("v1", "v2", "crop_blur")},
    "warps": Recipe.of(DataSection.model_validate({"augmentation": "v2", **WARP})),
    "labels": Recipe.of(DataSection.model_validate({"augmentation": "v2", **WARP})).gentler(),
}

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": lambda x, draw: operations.brightness(x, 0.5 + draw),
    "contrast": lambda x, draw: operations.contrast(x, 0.5 + draw),
    "saturation": lambda x, draw: operations.saturation(x, 0.5 + draw),
    "hue": lambda x, draw: operations.hue(x, draw - 0.5),
    "grayscale": lambda x, draw: operations.grayscale(x),
    "flip": lambda x, draw: operations.flip(x),
    "blur": lambda x, draw: operations.blur(x, 0.1 + draw, 5),
    "warp": lambda x, draw: operations.warp(
        x, 40 * draw - 20, 30 * draw - 15, (draw[:, None, None, None] - 0.5).expand(-1, 2, 4, 4)
    ),
}
"""Each operation on images [N, C, S, S] in 0 to 1, with a uniform number [N] for each image's parameter."""


def images(count: int, channels: int, size: int = 12) -> Tensor:
    """Random uint8 images [count, channels, size, size], among them a black, a white and a gray one."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    pixels[0], pixels[1], pixels[2] = 0, 255, pixels[2, :1]
    return pixels
