"""Decoded images that are cropped in a batch have the bits of those that are cropped one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from moco_dist.data import crops, resizes
from tests.data.made import numbers, pixels

SIZES = [(32, 32, 32), (32, 32, 28), (50, 37, 24), (40, 53, 70), (200, 150, 32), (6, 300, 8), (9, 7, 4)]
"""Height, width and side of the crop. Of the second and its like, Pillow 13 resizes some down their columns first."""


@pytest.fixture(autouse=True)
def forgets() -> Iterator[None]:
    resizes.are_as_known.cache_clear()
    yield
    resizes.are_as_known.cache_clear()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_crops_and_centres(channels: int, height: int, width: int, size: int) -> None:
    images = pixels(40, channels, height, width)
    alone = [image.permute(1, 2, 0).numpy() for image in images]
    sides = np.full(40, height), np.full(40, width)
    boxes = crops.crop_boxes(numbers(40, crops.CROP_DRAWS), *sides, (0.05, 1.0), (0.5, 2.0))
    for decode in ("cpu", "pillow"):
        expected = [resizes.cut(image, box, size, decode) for image, box in zip(alone, boxes.tolist(), strict=True)]
        cropped = resizes.crop(images, torch.from_numpy(boxes), size, decode)
        assert torch.equal(cropped.movedim(1, 3), torch.stack(expected))
    centres = [crops.centre(Image.fromarray(image.squeeze()), size) for image in alone]
    assert torch.equal(resizes.centres(images, size), torch.stack(centres))


@pytest.mark.parametrize("number", ["_PILLOWS_UNIT", "_LARGEST_OF_TORCH"])
def test_a_library_that_resizes_otherwise_is_noticed(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resizes.are_as_known()
    resizes.are_as_known.cache_clear()
    monkeypatch.setattr(resizes, number, 2.0**8)
    assert not resizes.are_as_known()
