"""Measure one image file: its size, its pixels, and whether it can be decoded at all."""

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageStat

from moco_dist.config.section import MOST_CHANNELS, Interval
from moco_dist.data import decode
from moco_dist.data.decode import Planes, Unreadable
from moco_dist.data.image_file import ImageFile, array, opened
from moco_dist.data.tree import ARRAY_SUFFIX

_CHANNELS = {"1": 1, "L": 1, "LA": 1, "La": 1, "I": 1, "F": 1}
"""Channels of PIL's modes that do not have colours; modes that begin with I;16 have one, all others three."""


class Measured(NamedTuple):
    """The measurements of an image that can be decoded."""

    name: str
    """Path of the file; in a survey, below its folder."""
    size: tuple[int, int]
    """Width and height in pixels, as they lie in the file."""
    channels: int
    """1 where it is gray, whatever its file could hold; else 3, or the channels of an array."""
    bits: int
    """Bits of a channel in the file."""
    digest: bytes
    """sha256 of the file."""
    extremes: tuple[float, float] | None
    """Least and greatest value where a channel has more than 8 bits, else None."""
    full_range: Interval | None
    """Values that become black and white unless `data.value_range` says otherwise; None where it cannot."""
    pixels: int
    """Pixels of a channel."""
    sums: tuple[float, ...]
    """Sum of the pixels of each channel, of pixels in [0, 1]."""
    squares: tuple[float, ...]
    """Sum of their squares."""


def measure(file: ImageFile) -> Measured | Unreadable:
    """Read an image file from its first byte to its last pixel."""
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").digest()
        size, channels, bits = _head(file)
        values = decode.deep_values(file, channels)
        extremes = None if values is None else decode.extremes(values)
        full_range = None if values is None or _is_deep_colour(file) else decode.full_range(values)
        value_range = _value_range(extremes, full_range) if extremes and full_range else None
        planes = decode.decode(file, channels, value_range)
    except MemoryError:
        raise  # the process's own, which says nothing of the file
    except Exception as error:  # decoders raise errors of their own kinds, and here none of them ends the rest
        return Unreadable.of(file, error)
    if channels == 3 and _is_gray(planes):
        channels, planes = 1, [planes[0].getchannel(0)]
    pixels, sums, squares = _moments(planes)
    return Measured(str(file), size, channels, bits, digest, extremes, full_range, pixels, sums, squares)


def _head(file: ImageFile) -> tuple[tuple[int, int], int, int]:
    """Read size, channels and bits of a channel from the head of a file."""
    if file.suffix.lower() == ARRAY_SUFFIX:
        values = array(file)
        shape = values.shape
        height, width, channels = shape if len(shape) == 3 else (*shape, 1)
        if channels > MOST_CHANNELS >= height:
            channels, height, width = shape
        bits = 8 * values.dtype.itemsize
        return (width, height), channels, bits
    with opened(file) as image:
        gray = image.mode.startswith("I;16")
        bits = 16 if gray or decode.is_deep_colour(image) else {"1": 1, "I": 32, "F": 32}.get(image.mode, 8)
        return image.size, 1 if gray else _CHANNELS.get(image.mode, 3), bits


def _value_range(extremes: Interval, full_range: Interval) -> Interval | None:
    """Return the range that the values of an image need to be scaled by; None where that of their kind serves."""
    low, high = extremes
    if full_range[0] <= low <= high <= full_range[1]:
        return None
    return low, max(high, float(np.nextafter(low, np.inf)))


def _is_deep_colour(file: ImageFile) -> bool:
    """Tell whether an image has 16 bits a channel, of which PIL reads the upper 8."""
    if file.suffix.lower() == ARRAY_SUFFIX:
        return False
    with opened(file) as image:
        return decode.is_deep_colour(image)


def _is_gray(planes: Planes) -> bool:
    """Tell whether the three channels of a colour image are equal."""
    red, green, blue = planes[0].split()
    return not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))


def _moments(planes: Planes) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Add up the pixels, scaled to [0, 1], and their squares, of each channel."""
    channels: list[Image.Image] = [channel for plane in planes for channel in plane.split()]
    moments = [ImageStat.Stat(channel) for channel in channels]
    sums = tuple(moment.sum[0] / 255 for moment in moments)
    return moments[0].count[0], sums, tuple(moment.sum2[0] / 255**2 for moment in moments)
