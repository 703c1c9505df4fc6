"""The crops against torchvision, one image at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from moco_dist.data import crops, separable
from tests.data.made import DIGITS_RATIO, numbers, pixels


def box_oracle(draws: list[float], height: int, width: int, scale: tuple, ratio: tuple) -> list[int]:
    """RandomResizedCrop.make_params of torchvision, line by line, with given random numbers."""
    for t in range(10):
        u_area, u_ratio, u_top, u_left = draws[4 * t : 4 * t + 4]
        target_area = height * width * (scale[0] + (scale[1] - scale[0]) * u_area)
        log_ratio = math.log(ratio[0]), math.log(ratio[1])
        aspect = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u_ratio)  # math.exp may round otherwise
        w, h = round(math.sqrt(target_area * aspect)), round(math.sqrt(target_area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w]
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    h, w = max(h, 1), max(w, 1)  # torchvision would return an empty crop of an image of some pixels
    return [(height - h) // 2, (width - w) // 2, h, w]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    sides=st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=8),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)).map(sorted),
)
@example(seed=0, sides=[(10, 400), (400, 10), (32, 32)], scale=[0.9, 1.0], ratio=[3 / 4, 4 / 3])
def test_crop_boxes_are_torchvisions(seed: int, sides: list, scale: list, ratio: list) -> None:
    draws = numbers(len(sides), crops.CROP_DRAWS, seed)
    heights, widths = np.array(sides).T
    boxes = crops.crop_boxes(draws, heights, widths, tuple(scale), tuple(ratio))
    oracle = [box_oracle(d, h, w, tuple(scale), tuple(ratio)) for d, (h, w) in zip(draws.tolist(), sides, strict=True)]
    assert boxes.dtype == np.int64
    np.testing.assert_array_equal(boxes, oracle)
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= heights).all() and (left + width <= widths).all()


def test_a_later_try_is_taken_where_the_first_does_not_fit() -> None:
    draws = np.full((1, crops.CROP_DRAWS), 0.999, dtype=np.float32)  # the whole area at the widest ratio: never fits
    draws[0, 4 * 6 : 4 * 7] = 0.25, 0.5, 0.0, 0.999  # but the seventh does
    side = np.array([100])
    np.testing.assert_array_equal(
        crops.crop_boxes(draws, side, side, (0.2, 1.0), DIGITS_RATIO), [[0, 100 - 63, 63, 63]]
    )


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 100, [0, 43, 10, 13]), (100, 10, [43, 0, 13, 10]), (30, 30, [0, 0, 30, 30])],
)
def test_the_fallback_is_the_central_crop(height: int, width: int, box: list[int]) -> None:
    draws = np.full((1, crops.CROP_DRAWS), 0.9999, dtype=np.float32)
    boxes = crops.crop_boxes(draws, np.array([height]), np.array([width]), (0.9, 1.0), DIGITS_RATIO)
    np.testing.assert_array_equal(boxes, [box])


def test_crops_cover_their_interval() -> None:
    side = np.full(4000, 200)
    _, left, height, width = crops.crop_boxes(numbers(4000, crops.CROP_DRAWS), side, side, (0.2, 0.5), DIGITS_RATIO).T
    area = height * width / 200**2
    assert area.min() == pytest.approx(0.2, abs=0.01) and area.max() == pytest.approx(0.5, abs=0.01)
    assert area.mean() == pytest.approx(0.35, abs=0.01)
    assert np.log(width / height).mean() == pytest.approx(0, abs=0.02)
    assert (left / (200 - width)).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(28, 28, 28), (32, 32, 32), (33, 21, 17), (96, 64, 16), (9, 11, 24)]
)
def test_resized_crop_is_torchvisions(channels: int, height: int, width: int, size: int) -> None:
    images, batch = pixels(16, channels, height, width), 16
    sides = np.full(batch, height), np.full(batch, width)
    boxes = crops.crop_boxes(numbers(batch, crops.CROP_DRAWS), *sides, (0.1, 1.0), (0.5, 2.0))
    out = crops.resized_crop(images, torch.from_numpy(boxes), size)
    assert out.shape == (batch, channels, size, size) and out.dtype == torch.uint8
    top, left, h, w = torch.from_numpy(boxes).double().unbind(1)
    rows, cols = separable.interpolation(top, h, height, size), separable.interpolation(left, w, width, size)
    exact = separable.separable(rows, images.double(), cols)
    for i, box in enumerate(boxes.tolist()):
        theirs = tv.resized_crop(images[i].float(), *box, [size, size], antialias=True)
        torch.testing.assert_close(exact[i].float(), theirs, atol=1e-3, rtol=0)
        assert (out[i] - theirs).abs().max() < 0.501
        levels = tv.resized_crop(images[i], *box, [size, size], antialias=True)
        assert (out[i].int() - levels.int()).abs().max() <= 1


def test_a_crop_of_the_same_size_is_copied() -> None:
    images = pixels(2, 3, 20)
    out = crops.resized_crop(images, torch.tensor([[3, 5, 12, 12], [8, 0, 12, 12]]), 12)
    assert torch.equal(out, torch.stack([images[0, :, 3:15, 5:17], images[1, :, 8:20, 0:12]]))


def picture(channels: int, height: int, width: int) -> Image.Image:
    array = pixels(1, channels, height, width)[0].permute(1, 2, 0).numpy()
    return Image.fromarray(array.squeeze(-1) if channels == 1 else array)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("box", [(5, 7, 40, 30), (0, 0, 50, 60), (20, 11, 16, 16), (30, 40, 3, 9)])
def test_crop_file_is_torchvisions(channels: int, box: tuple[int, ...]) -> None:
    image = picture(channels, 50, 60)
    out = crops.crop_file(image, np.array(box), 16)
    assert out.dtype == torch.uint8 and out.is_contiguous()
    assert torch.equal(out, tv.pil_to_tensor(tv.resized_crop(image, *box, [16, 16], antialias=True)))


def test_files_and_arrays_are_cropped_alike() -> None:
    image, box = picture(3, 50, 60), np.array([[5, 7, 40, 30]])
    array = crops.resized_crop(tv.pil_to_tensor(image)[None], torch.from_numpy(box), 16)[0]
    assert (array.int() - crops.crop_file(image, box[0], 16).int()).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), [(50, 67, 16), (301, 200, 224), (8, 8, 8), (30, 99, 28)])
def test_centre_is_torchvisions(channels: int, height: int, width: int, size: int) -> None:
    image = picture(channels, height, width)
    theirs = tv.center_crop(tv.resize(image, [round(size * 256 / 224)], antialias=True), [size, size])
    assert torch.equal(crops.centre(image, size), tv.pil_to_tensor(theirs))


@pytest.mark.parametrize(("height", "width"), [(5, 300), (300, 5), (4, 301), (7, 2000)])
def test_the_centre_of_a_long_image_is_torchvisions(height: int, width: int) -> None:
    wave = 127 + 100 * np.sin((np.arange(height)[:, None] + np.arange(width)) / 20)
    image = Image.fromarray(wave.astype(np.uint8))
    theirs = tv.center_crop(tv.resize(image, [round(8 * 256 / 224)], antialias=True), [8, 8])
    ours = crops.centre(image, 8)
    assert (ours.int() - tv.pil_to_tensor(theirs).int()).abs().max() <= 5  # the place of a pixel is rounded


def test_centre_batch() -> None:
    images = pixels(3, 3, 28)
    assert crops.centre_batch(images, 28) is images
    resized = crops.centre_batch(images, 20)
    assert (resized - tv.resize(images.float(), [20, 20], antialias=True)).abs().max() < 0.501
    wide = pixels(3, 1, 28, 40)
    assert torch.equal(crops.centre_batch(wide, 28), wide[:, :, :, 6:34])
