"""Crop decoded images in a batch, on any device, with the bits that one image after the other gets on the CPU.

Pillow and torch resize 8-bit images in integers: the weights are rounded to multiples of a power of two, and the pixels
after each of two passes. Float64 holds all of these numbers exactly, so that neither the order of additions nor the
device changes a bit.
"""

import functools

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from moco_dist.data import photographs
from moco_dist.data.crops import Box, central, centre, crop_boxes, crop_file, resampling
from moco_dist.data.decode import planes_of
from moco_dist.data.separable import separable

_PILLOWS_UNIT = 2.0**22
"""Pillow multiplies the weights by this number before it rounds them."""
_LARGEST_OF_TORCH = 2**15
"""The integers that torch makes of the weights stay below this number."""


def crop(images: Tensor, boxes: Tensor, size: int, decode: str) -> Tensor:
    """Crop and resize each image to a box of its own, as the files are cropped with this `data.decode`.

    Args:
        images: uint8 [B, C, H, W]
        boxes: int64 [B, 4] top, left, height, width in pixels, on the CPU.
        size: side of the result in pixels.
        decode: cpu for the bits of `photographs.resized`, else those of `crops.crop_file`.

    Returns:
        uint8 [B, C, size, size]
    """
    rows, cols = resampling(images, boxes, size, size)
    if decode == "cpu":
        never = torch.zeros(1, dtype=torch.bool)
        return _resized(images, _rounded(rows, _torchs_unit(rows)), _rounded(cols, _torchs_unit(cols)), never)
    down_first = _is_resized_down_first(boxes, size, size)
    return _resized(images, _rounded(rows, _PILLOWS_UNIT), _rounded(cols, _PILLOWS_UNIT), down_first)


def centres(images: Tensor, size: int) -> Tensor:
    """Cut the evaluation's view out of images of one size: the bits of `crops.centre`.

    Args:
        images: uint8 [B, C, H, W]
        size: side of the result in pixels.

    Returns:
        uint8 [B, C, size, size]
    """
    (top, height, new_height, first_row), (left, width, new_width, first_col) = central(images.shape[2:], size)
    box = torch.tensor([[top, left, height, width]])
    rows, cols = resampling(images, box, new_height, new_width)
    rows, cols = (
        _rounded(weights[:, first:][:, :size], _PILLOWS_UNIT)
        for weights, first in ((rows, first_row), (cols, first_col))
    )
    return _resized(images, rows, cols, _is_resized_down_first(box, new_height, new_width))


@functools.cache
def are_as_known() -> bool:
    """Tell whether `crop` and `centres` give the bits of the Pillow and the torch that are here.

    Of later releases, or on another processor, they need not. Some crops that are enlarged and reduced tell.
    """
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (32, 3, 24, 24), dtype=np.uint8))
    sides = np.full(32, 24)
    boxes = crop_boxes(rng.random((32, 40), dtype=np.float32), sides, sides, (0.02, 1.0), (0.3, 3.0))
    pixels = [image.permute(1, 2, 0).numpy() for image in images]
    in_centre = [centre(Image.fromarray(of_image), 12) for of_image in pixels]
    if not torch.equal(centres(images, 12), torch.stack(in_centre)):
        return False
    for decode in ("cpu", "pillow"):
        alone = [cut(of_image, box, 12, decode) for of_image, box in zip(pixels, boxes.tolist(), strict=True)]
        if not torch.equal(crop(images, torch.from_numpy(boxes), 12, decode).movedim(1, 3), torch.stack(alone)):
            return False
    return True


def cut(pixels: photographs.Pixels, box: Box, size: int, decode: str) -> Tensor:
    """Crop and resize one decoded image, uint8 [H, W, C], to [size, size, C], as `crop` does in a batch."""
    if decode == "cpu":
        return photographs.resized(pixels, box, size)
    return torch.cat([crop_file(plane, box, size) for plane in planes_of(pixels)]).movedim(0, 2)


def _rounded(weights: Tensor, unit: Tensor | float) -> Tensor:
    """Round weights [B, S, H] to multiples of one in so many, halves upward."""
    return (weights * unit).add_(0.5).floor_().div_(unit)


def _torchs_unit(weights: Tensor) -> Tensor:
    """Return by what torch multiplies the weights [B, S, H]: the power of two that the largest allows, [B, 1, 1]."""
    largest = weights.amax((1, 2), keepdim=True)
    exponent = torch.frexp((_LARGEST_OF_TORCH - 0.5) / largest).exponent - 1  # of two, rounded down
    return (torch.ones_like(exponent, dtype=torch.int64) << exponent.clamp_(max=22)).double()


def _resized(images: Tensor, rows: Tensor, cols: Tensor, down_first: Tensor) -> Tensor:
    """Resize in integers.

    Args:
        images: uint8 [B, C, H, W]
        rows: [B or 1, S, H] rounded weights in float64.
        cols: [B or 1, T, W]
        down_first: bool [B or 1], on the CPU; which images are resized down their columns before along their rows.

    Returns:
        uint8 [B, C, S, T]
    """
    rows, cols = (weights.expand(len(images), -1, -1) for weights in (rows, cols))

    def in_integers(pixels: Tensor) -> Tensor:
        return pixels.add_(0.5).floor_().clamp_(0, 255)

    pixels = images.double()
    resized = separable(rows, pixels, cols, in_integers)  # along the rows of an image, then down its columns
    if down_first.any():
        other = separable(cols, pixels.mT, rows, in_integers).mT
        resized = torch.where(down_first.to(images.device, non_blocking=True)[:, None, None, None], other, resized)
    return resized.to(torch.uint8)


def _is_resized_down_first(boxes: Tensor, new_height: int, new_width: int) -> Tensor:
    """Tell which boxes [B, 4] Pillow resizes down their columns before it does so along their rows.

    Releases before 13 never do; 13 does where the height shrinks by more than twice what the width does.
    """
    shrink = boxes[:, 2] - new_height
    return (shrink > 0) & (shrink > 2 * (boxes[:, 3] - new_width)) & (int(PIL.__version__.split(".")[0]) >= 13)
