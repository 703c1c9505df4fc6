"""Crop images: place random boxes by keyed draws on the host, and cut them out there or on the device.

Nothing is drawn here: a box is a function of its image's size and of `CROP_DRAWS` uniform numbers.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from moco_dist.config.data_section import DataSection
from moco_dist.config.section import Interval
from moco_dist.data.decode import Planes
from moco_dist.data.separable import interpolation, separable

CROP_TRIES = 10
CROP_DRAWS = 4 * CROP_TRIES
"""Uniform numbers for a view's crop: area, ratio, top and left of each try."""

_LONGEST = 16
"""Longer over shorter side, beyond which the ends of an image are cut off before its centre is resized; even, so that
what is cut off is even too."""
_PIL_ONE = 2.0**22
"""What PIL multiplies the weights of a resize by, and rounds them."""


def crop_boxes(
    draws: NDArray[np.float32], heights: NDArray[np.int64], widths: NDArray[np.int64], scale: Interval, ratio: Interval
) -> NDArray[np.int64]:
    """Place random crops as torchvision's RandomResizedCrop does.

    A crop is the first of ten tries that fits into the image: area uniform in `scale`, width over height log-uniform in
    `ratio`, position uniform. Where none fits, the largest central crop whose ratio is allowed.

    Args:
        draws: [B, CROP_DRAWS] uniform numbers in [0, 1).
        heights: [B] of the images, in pixels.
        widths: [B]
        scale: area of the crop as a fraction of the image's, least and most.
        ratio: width over height of the crop, least and most.

    Returns:
        [B, 4] top, left, height, width in pixels.
    """
    image = np.stack([heights, widths]).astype(np.int64)  # [2, B] height and width
    area_draw, ratio_draw, *place_draws = np.moveaxis(draws.reshape(-1, CROP_TRIES, 4).astype(np.float64), 2, 0)
    area = (scale[0] + (scale[1] - scale[0]) * area_draw) * image.prod(0)[:, None]  # [B, tries]
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(log_low + (log_high - log_low) * ratio_draw)
    crop = np.rint(np.sqrt(np.stack([area / aspect, area * aspect]))).astype(np.int64)  # [2, B, tries]
    place = np.floor(np.stack(place_draws) * (image[:, :, None] - crop + 1)).astype(np.int64)
    fits = ((crop > 0) & (crop <= image[:, :, None])).all(0)  # [B, tries]
    tried = np.concatenate([place, crop])[:, np.arange(len(fits)), fits.argmax(1)]  # [4, B]
    return np.where(fits.any(1), tried, _central_crop(image, ratio)).T


def _central_crop(image: NDArray[np.int64], ratio: Interval) -> NDArray[np.int64]:
    """Place the largest central crops whose ratio is allowed, [4, B] top, left, height, width."""
    height, width = image  # [B] each
    crop = np.stack([np.minimum(height, np.rint(width / ratio[0])), np.minimum(width, np.rint(height * ratio[1]))])
    crop = np.maximum(crop, 1).astype(np.int64)  # torchvision's is empty in an image of a few pixels
    return np.concatenate([(image - crop) // 2, crop])


def crop_views(planes: Planes, draws: NDArray[np.float32], data: DataSection) -> Tensor:
    """Crop some random views out of one decoded image.

    Args:
        planes: of the image.
        draws: [V, CROP_DRAWS] uniform numbers in [0, 1), a row for each view.
        data: size S of the views in pixels, and limits of their area and ratio.

    Returns:
        uint8 [V, C, S, S]
    """
    width, height = (np.full(len(draws), side) for side in planes[0].size)
    boxes = crop_boxes(draws, height, width, data.crop_scale, data.crop_ratio)
    return torch.stack([torch.cat([crop_file(plane, box, data.image_size) for plane in planes]) for box in boxes])


def crop_file(image: Image.Image, box: Sequence[int] | NDArray[np.int64], size: int) -> Tensor:
    """Crop and resize one decoded image with PIL's antialiased bilinear filter, as torchvision does.

    Args:
        image: mode RGB or L.
        box: top, left, height, width in pixels, a row of `crop_boxes`.
        size: side of the result in pixels.

    Returns:
        uint8 [C, size, size]
    """
    top, left, height, width = map(int, box)
    # Not resize(box=...): its filter would look at pixels outside the crop.
    crop = image.crop((left, top, left + width, top + height))
    return _tensor(crop.resize((size, size), Image.Resampling.BILINEAR))


def centre(image: Image.Image, size: int) -> Tensor:
    """Cut the evaluation's view out of a decoded image: shorter side to size * 256/224, then the central square.

    Args:
        image: mode RGB or L.
        size: side of the result in pixels.

    Returns:
        uint8 [C, size, size]
    """
    (left, width, new_width, first_col), (top, height, new_height, first_row) = _central(image.size, size)
    middle = image.crop((left, top, left + width, top + height))
    resized = middle.resize((new_width, new_height), Image.Resampling.BILINEAR)
    return _tensor(resized.crop((first_col, first_row, first_col + size, first_row + size)))


def _central(sides: Sequence[int], size: int) -> list[tuple[int, int, int, int]]:
    """Return for each axis what `centre` takes of an image: the first pixel, how many, resized to how many, and the
    first of the resized ones.

    Both ends of an image that is many times as long as it is wide are cut off. Resized whole, a line of 60000 pixels
    would be a gigabyte of which a square is seen.
    """
    shorter, short = min(sides), round(size * 256 / 224)
    kept = [min(side, _LONGEST * shorter + side % 2) for side in sides]
    resized = [short * length // shorter for length in kept]
    return [
        ((side - length) // 2, length, new_length, round((new_length - size) / 2))
        for side, length, new_length in zip(sides, kept, resized, strict=True)
    ]


def _tensor(image: Image.Image) -> Tensor:
    """Copy the pixels of a PIL image into a tensor, uint8 [C, H, W]."""
    assert image.mode in ("RGB", "L"), f"convert the image from mode {image.mode}"
    pixels = torch.from_numpy(np.array(image))  # [H, W] or [H, W, C]
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def resized_crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop each image of an array to a box of its own and resize it, bilinear and antialiased.

    Computed in float64: an error of float32 could depend on the batch, and rounding would make it a whole level.

    Args:
        images: uint8 [B, C, H, W]
        boxes: int64 [B, 4] top, left, height, width in pixels.
        size: side of the result in pixels.

    Returns:
        uint8 [B, C, size, size]
    """
    rows, cols = _resampling(images, boxes, size, size)
    resized = separable(rows, images.double(), cols)  # [B, C, size, size]
    # Ties are frequent (the mean of two levels); off the edge, rounding error cannot decide them.
    return resized.add_(0.5 + 1e-6).clamp_(0, 255).to(torch.uint8)  # the conversion truncates


def crop_files(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop and resize each decoded image to a box of its own: the bits of `crop_file`, for a batch on any device.

    Args:
        images: uint8 [B, C, H, W]
        boxes: int64 [B, 4] top, left, height, width in pixels, on the CPU.
        size: side of the result in pixels.

    Returns:
        uint8 [B, C, size, size]
    """
    down_first = _is_resized_down_first(boxes, size, size)
    return _resized_as_pil(images, *_resampling(images, boxes, size, size), down_first)


def centre_files(images: Tensor, size: int) -> Tensor:
    """Cut the evaluation's view out of decoded images of one size: the bits of `centre`, for a batch on any device.

    Args:
        images: uint8 [B, C, H, W]
        size: side of the result in pixels.

    Returns:
        uint8 [B, C, size, size]
    """
    (top, height, new_height, first_row), (left, width, new_width, first_col) = _central(images.shape[2:], size)
    box = torch.tensor([[top, left, height, width]])
    down_first = _is_resized_down_first(box, new_height, new_width)
    rows, cols = _resampling(images, box, new_height, new_width)
    rows, cols = rows[:, first_row:][:, :size], cols[:, first_col:][:, :size]
    return _resized_as_pil(images, rows, cols, down_first)


@functools.cache
def pil_is_as_known() -> bool:
    """Tell whether `crop_files` gives the bits of the PIL that is here: of a later release, it need not."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 24), dtype=np.uint8)
    boxes = np.array([[0, 0, height, width] for height in range(3, 24, 4) for width in range(3, 24, 4)])[:24]
    cropped = crop_files(torch.from_numpy(pixels)[:, None], torch.from_numpy(boxes), 12)
    alone = [crop_file(Image.fromarray(image), box, 12) for image, box in zip(pixels, boxes, strict=True)]
    return torch.equal(cropped, torch.stack(alone))


def _resampling(images: Tensor, boxes: Tensor, new_height: int, new_width: int) -> tuple[Tensor, Tensor]:
    """Make the matrices that resize boxes [B, 4]: [B, new_height, H] and [B, new_width, W], in float64."""
    top, left, heights, widths = boxes.to(images.device, non_blocking=True).double().unbind(1)
    height, width = images.shape[2:]
    return interpolation(top, heights, height, new_height), interpolation(left, widths, width, new_width)


def _resized_as_pil(images: Tensor, rows: Tensor, cols: Tensor, down_first: Tensor) -> Tensor:
    """Resize as PIL does, in integers: float64 holds all of them, so that the order of additions does not matter.

    Args:
        images: uint8 [B, C, H, W]
        rows: [B or 1, S, H] weights, which PIL rounds to multiples of 2^-22.
        cols: [B or 1, T, W]
        down_first: bool [B or 1], on the CPU, as `_is_resized_down_first`.

    Returns:
        uint8 [B, C, S, T]
    """
    rows, cols = ((matrix * _PIL_ONE + 0.5).floor_().expand(len(images), -1, -1) for matrix in (rows, cols))

    def pixels(sums: Tensor) -> Tensor:
        return sums.div_(_PIL_ONE).add_(0.5).floor_()

    images = images.double()
    resized = separable(rows, images, cols, pixels)  # along the rows of the image, then down its columns
    if down_first.any():
        other = separable(cols, images.mT, rows, pixels).mT
        resized = torch.where(down_first.to(images.device, non_blocking=True)[:, None, None, None], other, resized)
    return resized.to(torch.uint8)


def _is_resized_down_first(boxes: Tensor, new_height: int, new_width: int) -> Tensor:
    """Tell which boxes [B, 4] PIL resizes down their columns before it does so along their rows.

    Releases before 13 never do; 13 does where the height shrinks by more than twice what the width does.
    """
    shrink = boxes[:, 2] - new_height
    return (shrink > 0) & (shrink > 2 * (boxes[:, 3] - new_width)) & (int(PIL.__version__.split(".")[0]) >= 13)


def centre_batch(images: Tensor, size: int) -> Tensor:
    """Cut the evaluation's view out of images of one size: the central square, resized; nothing is cut off a square.

    Args:
        images: uint8 [B, C, H, W]
        size: side of the result in pixels.

    Returns:
        uint8 [B, C, size, size]; `images` itself where they are of that size.
    """
    height, width = images.shape[2:]
    if height == width == size:
        return images
    side = min(height, width)
    box = torch.tensor([(height - side) // 2, (width - side) // 2, side, side])
    return resized_crop(images, box.expand(len(images), -1), size)
