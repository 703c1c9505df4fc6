"""Crop images: place random boxes by keyed draws on the host, and cut them out there or on the device.

Nothing is drawn here: a box is a function of its image's size and of `CROP_DRAWS` uniform numbers.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from moco_dist.config.section import Interval
from moco_dist.data.separable import interpolation, separable

Box = tuple[int, int, int, int]
"""Top, left, height and width of a crop in pixels."""

CROP_TRIES = 10
CROP_DRAWS = 4 * CROP_TRIES
"""Uniform numbers for a view's crop: area, ratio, top and left of each try."""

_LONGEST = 16
"""Longer over shorter side, beyond which the ends of an image are cut off before its centre is resized; even, so that
what is cut off is even too."""


def crop_boxes(
    draws: NDArray[np.float32], heights: NDArray[np.int64], widths: NDArray[np.int64], scale: Interval, ratio: Interval
) -> NDArray[np.int64]:
    """Place a random crop in each of some images, as `Placer` does.

    Args:
        draws: [B, CROP_DRAWS] uniform numbers in [0, 1).
        heights: [B] of the images, in pixels.
        widths: [B]
        scale: area of the crop as a fraction of the image's, least and most.
        ratio: width over height of the crop, least and most.

    Returns:
        [B, 4] top, left, height, width in pixels.
    """
    placers = placers_of(draws[None], scale, ratio)
    sizes = zip(heights.tolist(), widths.tolist(), strict=True)
    boxes = [placer(*size)[0] for placer, size in zip(placers, sizes, strict=True)]
    return np.array(boxes, dtype=np.int64).reshape(-1, 4)


class Placer(NamedTuple):
    """A placer places random crops in one image, once the size of that is known.

    It does what torchvision's RandomResizedCrop does: a crop is the first of ten tries that fits into the image, with
    an area that is uniform in `scale`, width over height log-uniform in `ratio`, and a uniform position. Where none
    fits, it is the largest central crop whose ratio is allowed.
    """

    tries: list[list[list[float]]]
    """[V, CROP_TRIES, 4] of each view: area as a fraction of the image's, width over height, and the position from
    top and left as fractions of what is possible."""
    ratio: Interval

    def __call__(self, height: int, width: int) -> list[Box]:
        """Return the box of each view in an image of that size. Plain numbers, since numpy takes long for a few."""
        return [self._box(tries, height, width) for tries in self.tries]

    def _box(self, tries: list[list[float]], height: int, width: int) -> Box:
        for fraction, aspect, top, left in tries:
            area = fraction * (height * width)
            crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                return (
                    int(top * (height - crop_height + 1)),
                    int(left * (width - crop_width + 1)),
                    crop_height,
                    crop_width,
                )
        # torchvision's is empty in an image of a few pixels
        crop_height = max(1, min(height, round(width / self.ratio[0])))
        crop_width = max(1, min(width, round(height * self.ratio[1])))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def placers_of(draws: NDArray[np.float32], scale: Interval, ratio: Interval) -> list[Placer]:
    """Make the placer of each of some images.

    Args:
        draws: [V, B, CROP_DRAWS] uniform numbers in [0, 1), for V views of each image.
        scale: area of the crop as a fraction of the image's, least and most.
        ratio: width over height of the crop, least and most.
    """
    tries = draws.reshape(*draws.shape[:2], CROP_TRIES, 4).astype(np.float64).swapaxes(0, 1)  # [B, V, tries, 4]
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    tries[..., 0] = scale[0] + (scale[1] - scale[0]) * tries[..., 0]
    tries[..., 1] = np.exp(log_low + (log_high - log_low) * tries[..., 1])
    return [Placer(of_image, ratio) for of_image in tries.tolist()]


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


def centre(image: Image.Image, size: int, resize: int | None = None) -> Tensor:
    """Cut the evaluation's view out of a decoded image: shorter side to size * 256/224, then the central square.

    Args:
        image: mode RGB or L.
        size: side of the result in pixels.
        resize: the shorter side in pixels, where another one is wanted.

    Returns:
        uint8 [C, size, size]
    """
    (left, width, new_width, first_col), (top, height, new_height, first_row) = central(image.size, size, resize)
    middle = image.crop((left, top, left + width, top + height))
    resized = middle.resize((new_width, new_height), Image.Resampling.BILINEAR)
    return _tensor(resized.crop((first_col, first_row, first_col + size, first_row + size)))


def shorter_side(size: int) -> int:
    """Return the shorter side, in pixels, that an image is resized to before a square of a side is cut out of it."""
    return round(size * 256 / 224)


def central(sides: Sequence[int], size: int, resize: int | None = None) -> list[tuple[int, int, int, int]]:
    """Return for each axis what `centre` takes of an image: the first pixel, how many, resized to how many, and the
    first of the resized ones.

    Both ends of an image that is many times as long as it is wide are cut off. Resized whole, a line of 60000 pixels
    would be a gigabyte of which a square is seen.
    """
    shorter, short = min(sides), resize or shorter_side(size)
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
    rows, cols = resampling(images, boxes, size, size)
    resized = separable(rows, images.double(), cols)  # [B, C, size, size]
    # Ties are frequent (the mean of two levels); off the edge, rounding error cannot decide them.
    return resized.add_(0.5 + 1e-6).clamp_(0, 255).to(torch.uint8)  # the conversion truncates


def resampling(images: Tensor, boxes: Tensor, new_height: int, new_width: int) -> tuple[Tensor, Tensor]:
    """Make the matrices that resize boxes [B, 4]: [B, new_height, H] and [B, new_width, W], in float64."""
    top, left, heights, widths = boxes.to(images.device, non_blocking=True).double().unbind(1)
    height, width = images.shape[2:]
    return interpolation(top, heights, height, new_height), interpolation(left, widths, width, new_width)


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
