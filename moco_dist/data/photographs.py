"""Make the views of an image file at the least cost: one decode for all, no larger than they need, SIMD to resize.

A gray or colour JPEG is decoded by libjpeg-turbo without a detour. Everything else goes the way of `decode`, and so
does a JPEG of which libjpeg-turbo says the least that is amiss: Pillow decides whether an image can be read.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from moco_dist.config.section import Interval
from moco_dist.data.crops import Box, Placer
from moco_dist.data.decode import TURNS, Planes, decode, orientation
from moco_dist.data.image_file import ImageFile, opened

try:
    import simplejpeg
except ImportError:  # there is no wheel of it for this machine
    simplejpeg = None

_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_MARGIN = 1.5
"""A crop that is decoded at a reduced scale has at least this many times the pixels of a view along each side."""

_MOST_PIXELS = Image.MAX_IMAGE_PIXELS or sys.maxsize
"""Pillow decides whether an image with more pixels is read."""
_METADATA, _PIXELS, _FILL = 0xE1, 0xDA, 0xFF
"""Kinds of a JPEG's segments: of EXIF or XMP, and what the pixels begin with; and the byte that is ahead of a kind."""

Pixels = NDArray[np.uint8]
"""An upright image, [H, W, C]."""


def crop_views(file: ImageFile, place: Placer, size: int, channels: int, value_range: Interval | None) -> list[Tensor]:
    """Decode an image file once, and crop its views.

    Args:
        file: the image.
        place: places the crops of the views.
        size: side S of the views in pixels.
        channels: C of the views.
        value_range: as `decode` takes it.

    Returns:
        uint8 [S, S, C] of each view.

    Raises:
        Exception: as `decode`.
    """
    photograph = Photograph.of(file) if channels in (1, 3) and is_jpeg(file) else None
    if photograph:
        boxes = place(photograph.height, photograph.width)
        reduction = photograph.reduction(boxes, size)
        pixels = photograph.pixels(channels, reduction)
        if pixels is not None and reduction == 1:
            return [resized(pixels, box, size) for box in boxes]
        if pixels is not None:
            return [resized_from_reduced(pixels, box, size, reduction) for box in boxes]
    pixels = pixels_of(decode(file, channels, value_range))
    return [resized(pixels, box, size) for box in place(*pixels.shape[:2])]


def whole(file: ImageFile, channels: int, value_range: Interval | None) -> Pixels:
    """Decode an image file at its full size, to the pixels that `crop_views` crops. Raises as `decode`."""
    photograph = Photograph.of(file) if channels in (1, 3) and is_jpeg(file) else None
    pixels = photograph.pixels(channels, 1) if photograph else None
    return by_decode(file, channels, value_range) if pixels is None else pixels


def is_jpeg(file: ImageFile) -> bool:
    """Tell whether a file is named as a JPEG."""
    return file.suffix.lower() in _SUFFIXES


def by_decode(file: ImageFile, channels: int, value_range: Interval | None) -> Pixels:
    """Decode an image file with `decode` alone. Raises as that."""
    return pixels_of(decode(file, channels, value_range))


def may_be_reduced(height: int, width: int, size: int) -> bool:
    """Tell whether an image of that size is ever decoded at a reduced scale, for views of so many pixels."""
    return min(height, width) >= 2 * _MARGIN * size


def pixels_of(planes: Planes) -> Pixels:
    """Return the pixels of a decoded image, [H, W, C]."""
    pixels = [_pixels(plane) for plane in planes]
    return pixels[0] if len(pixels) == 1 else np.concatenate(pixels, axis=2)


class Photograph:
    """A photograph is a gray or colour JPEG whose head was read, and whose pixels are not decoded yet."""

    def __init__(self, content: bytes, sides: tuple[int, int], number: int = 1) -> None:
        """Take the bytes, width and height as they are stored, and the EXIF orientation."""
        self._content, self._stored_sides, self._turn = content, sides, TURNS.get(number)
        self.height, self.width = sides if number in range(5, 9) else sides[::-1]  # other numbers turn nothing

    @classmethod
    def of(cls, file: ImageFile) -> Photograph | None:
        """Read a file; None where it is no such image, or `decode` shall tell what is wrong with it."""
        try:
            content = file.read_bytes()
            if simplejpeg and not _has_metadata(content):  # Pillow takes long to read a head
                height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
                is_plain = colours in ("YCbCr", "Gray") and height * width <= _MOST_PIXELS
                return cls(content, (width, height)) if is_plain else None
            with opened(io.BytesIO(content)) as image:
                is_plain = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
                return cls(content, image.size, orientation(image)) if is_plain else None
        except MemoryError:
            raise
        except Exception:  # decoders raise errors of their own kinds
            return None

    def reduction(self, boxes: Sequence[Box], size: int) -> int:
        """Return 8, 4, 2 or 1: the most by which the image may be reduced, so that all crops stay large enough."""
        least = min(min(height, width) for _, _, height, width in boxes)
        for factor in (8, 4, 2):
            # A side that the factor does not divide is filled up at its end, which must stay the end.
            keeps_place = self._turn is None or not any(side % factor for side in self._stored_sides)
            if keeps_place and least >= _MARGIN * size * factor:
                return factor
        return 1

    def pixels(self, channels: int, reduction: int) -> Pixels | None:
        """Decode the image with its sides divided by the reduction, rounded up; None where a fault is found in it."""
        try:
            pixels = (by_turbo if simplejpeg else by_pillow)(self._content, self._stored_sides, channels, reduction)
        except MemoryError:
            raise
        except Exception:
            return None
        if self._turn is None:
            return pixels
        return _pixels(_image(pixels).transpose(self._turn))


def _has_metadata(content: bytes) -> bool:
    """Tell whether a JPEG may have a segment with an orientation ahead of its pixels. Raises IndexError."""
    place = 2
    while (marker := content[place + 1]) != _PIXELS:
        if marker in (_METADATA, _FILL) or content[place] != _FILL:
            return True  # also of segments that do not follow one another at once, which Pillow finds
        place += 2 + int.from_bytes(content[place + 2 : place + 4])
    return False


def by_turbo(content: bytes, sides: tuple[int, int], channels: int, reduction: int) -> Pixels:
    width, height = (-(-side // reduction) for side in sides)
    colours = "GRAY" if channels == 1 else "RGB"
    pixels: Pixels = simplejpeg.decode_jpeg(
        content, colours, min_height=height, min_width=width, min_factor=reduction, strict=True
    )
    return pixels


def by_pillow(content: bytes, sides: tuple[int, int], channels: int, reduction: int) -> Pixels:
    """Decode as `by_turbo` does, to the same pixels in half as much time again: it is libjpeg-turbo, too."""
    mode = "L" if channels == 1 else "RGB"
    with opened(io.BytesIO(content)) as image:
        image.draft(mode, (sides[0] // reduction, sides[1] // reduction))
        return _pixels(image if image.mode == mode else image.convert(mode))


def resized(pixels: Pixels, box: Box, size: int) -> Tensor:
    """Crop and resize with torch's bilinear filter, antialiased like Pillow's, and as fast as the processor allows.

    Args:
        pixels: the whole image.
        box: of the crop.
        size: side S of the result in pixels.

    Returns:
        uint8 [S, S, C]
    """
    top, left, height, width = box
    # A copy with an axis of one image in front: of other strides, torch would take a slow way.
    crop = np.ascontiguousarray(pixels[None, top : top + height, left : left + width])  # [1, h, w, C]
    images = torch.from_numpy(crop).permute(0, 3, 1, 2)
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)[0].movedim(0, 2)


def resized_from_reduced(pixels: Pixels, box: Box, size: int, reduction: int) -> Tensor:
    """Crop and resize an image that was decoded at a reduced scale, at which a crop may begin within a pixel."""
    top, left, height, width = (side / reduction for side in box)
    first_row, first_column = math.floor(top), math.floor(left)
    inside = pixels[first_row : math.ceil(top + height), first_column : math.ceil(left + width)]
    edges = (left - first_column, top - first_row, left + width - first_column, top + height - first_row)
    return torch.from_numpy(_pixels(_image(inside).resize((size, size), Image.Resampling.BILINEAR, edges)))


def _pixels(image: Image.Image) -> Pixels:
    return np.atleast_3d(np.array(image))


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
