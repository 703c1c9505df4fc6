"""The tests of the data share these configs, images, files and draws."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco_dist import config
from moco_dist.config.data_section import DataSection
from moco_dist.data import crops
from moco_dist.data.augment import COLOUR_DRAWS, Recipe
from moco_dist.randomness import Stream, uniform

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"

DIGITS_RATIO = (3 / 4, 4 / 3)


def config_of(batch: int = 2, **data: Any) -> config.Config:
    knn = {key: data.pop(key) for key in ("knn_every", "knn_split", "validation_fraction") if key in data}
    return config.parse({"data": {"image_size": 8, **data}, "optim": {"global_batch": batch}, "eval": knn})


def folder_of(root: Path, **data: Any) -> config.Config:
    return config_of(source="imagefolder", root=str(root), **data)


def draw(path: Path, value: int, side: int = 16, mode: str = "RGB", width: int | None = None) -> Path:
    """A plain image, so that its one gray value tells it from the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width or side, side), value if mode == "L" else (value,) * 3).save(path, quality=95)
    return path


def values(images: torch.Tensor) -> list[int]:
    """The gray value of each plain image, to the ten."""
    assert images.dtype == torch.uint8
    return [round(value / 10) * 10 for value in images.double().mean(dim=(1, 2, 3)).tolist()]


def draws(count: int, views: int = 1) -> np.ndarray:
    """Uniform numbers for crops, [views, count, CROP_DRAWS]."""
    return uniform(0, Stream.VIEW, 0, views * np.arange(count) + np.arange(views)[:, None], crops.CROP_DRAWS)


def numbers(batch: int, count: int, seed: int = 0) -> np.ndarray:
    return uniform(seed, Stream.VIEW, 0, np.arange(batch), count)


def pixels(batch: int, channels: int, height: int, width: int | None = None, seed: int = 0) -> Tensor:
    """Random uint8 images, each with a black, a white, a gray and some saturated patches, where hue is at an edge."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, channels, height, width or height), generator=generator, dtype=torch.uint8)
    for corner, value in enumerate((0, 255, 128)):
        images[:, :, corner, :2] = value
    images[:, :, 3, :2] = torch.tensor([255, 0, 0][:channels], dtype=torch.uint8)[:, None]
    images[:, :, 3, 2:4] = torch.tensor([10, 200, 200][:channels], dtype=torch.uint8)[:, None]
    return images


def colour_draws(batch: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(numbers(batch, COLOUR_DRAWS, seed))


def recipe(name: str = "v2", **changes: object) -> Recipe:
    return Recipe.of(DataSection.model_validate({"augmentation": name, **changes}))


def damaged_avif(path: Path) -> None:
    """Write an AVIF at which the decoder raises an error of its own kind."""
    rng, file = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "AVIF")
    for place in range(len(file.getvalue()) // 2, len(file.getvalue())):
        content = bytearray(file.getvalue())
        content[place] ^= 255
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        except RuntimeError:
            path.write_bytes(content)
            return
        except (OSError, SyntaxError, ValueError):
            continue
    raise AssertionError("no such error")
