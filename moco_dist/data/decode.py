"""Decode an image file into 8-bit pixels as a viewer shows them, or tell why that cannot be done."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base

from moco_dist.config.section import Interval
from moco_dist.data.image_file import ImageFile, opened, read_array
from moco_dist.data.tree import ARRAY_SUFFIX
from moco_dist.errors import printable

Planes = list[Image.Image]
"""A decoded image: one PIL image of mode L or RGB, or one of mode L for each channel."""

_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""PIL's modes of more than 8 bits a channel; all have one channel."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes an image upright, by its EXIF orientation; 1 is upright already."""


class Unreadable(NamedTuple):
    """An unreadable image was replaced by another one; it is told as `PATH: REASON`."""

    name: str
    """Path of the file."""
    reason: str
    """Why it could not be read, in one line."""

    @classmethod
    def of(cls, path: object, error: Exception) -> Unreadable:
        """Word the error that opening or decoding a file has raised, without the path, in one line."""
        reason = " ".join(str(error).replace(repr(str(path)), "").split()).strip(" :")
        return cls(str(path), reason[:200] or type(error).__name__)

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.reason}"


class RangeError(ValueError):
    """The values of an image are not in the range that they would be scaled from."""


def decode(path: ImageFile, channels: int, value_range: Interval | None) -> Planes:
    """Decode an image file: 8 bits a channel, upright, with as many channels as asked for.

    A gray image becomes colour and a colour image gray; other numbers of channels are taken as they are or not at all.

    Args:
        path: an image that PIL reads, or a NumPy array, in a folder or in a shard.
        channels: 1 to 12.
        value_range: the values of more than 8 bits that become 0 and 255; None for those of `full_range`.

    Raises:
        RangeError: as `eight_bits`.
        Exception: whatever else the decoder of a damaged file raises.
    """
    if path.suffix.lower() == ARRAY_SUFFIX:
        return planes_of_array(read_array(path), channels, value_range)
    with opened(path) as image:
        return planes_of_image(image, channels, value_range)


def planes_of_image(image: Image.Image, channels: int, value_range: Interval | None) -> Planes:
    """Convert a PIL image as `decode` does a file, whose arguments and errors are the same."""
    if value_range and is_deep_colour(image):
        raise RangeError("has 16 bits a channel, of which PIL reads 8 alone in colour; save it as .npy [H, W, 3]")
    image.load()
    # A TIFF turns itself and drops its tag while it is loaded, so that the tag is read after that.
    turn = TURNS.get(orientation(image))
    if image.mode in _DEEP:
        image = Image.fromarray(eight_bits(np.asarray(image), value_range))
    planes = _with_channels(image, channels)
    return [plane.transpose(turn) for plane in planes] if turn is not None else planes


def planes_of_array(values: NDArray[Any], channels: int, value_range: Interval | None) -> Planes:
    """Convert an array as `decode` does a file of NumPy's: [H, W], [H, W, C] or else [C, H, W]. Raises as `decode`."""
    planes = planes_of(eight_bits(_channels_last(values, channels), value_range))
    return _with_channels(planes[0], channels) if len(planes) == 1 else planes


def planes_of(pixels: NDArray[np.uint8]) -> Planes:
    """Return the planes of pixels, uint8 [H, W, C]."""
    if pixels.shape[2] == 3:
        return [Image.fromarray(pixels)]
    return [Image.fromarray(np.ascontiguousarray(plane)) for plane in pixels.transpose(2, 0, 1)]


def eight_bits(values: NDArray[Any], value_range: Interval | None) -> NDArray[np.uint8]:
    """Scale an image's values to 0 to 255, rounded and clipped; what has 8 bits is returned as it is.

    Raises:
        RangeError: a value is not finite, or without `value_range` beyond the range of its kind.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    low, high = extremes(values)
    least, most = value_range or full_range(values)
    if value_range is None and not least <= low <= high <= most:
        raise RangeError(f"has values from {low:g} to {high:g}, beyond {least:g} to {most:g}")
    # float32 holds each level of 16 bits; wider integers need more, lest an offset drown them
    scaled = np.subtract(values, least, dtype=np.result_type(values.dtype, np.float32))
    scaled *= 255 / (most - least)
    levels: NDArray[np.uint8] = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return levels


def extremes(values: NDArray[Any]) -> Interval:
    """Return the least and the greatest value. Raises RangeError where one is not finite, or there are no numbers."""
    if values.dtype.kind not in "iuf":
        raise RangeError(f"holds {values.dtype}, no real numbers")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise RangeError("holds values that are not finite")
    return low, high


def full_range(values: NDArray[Any]) -> Interval:
    """Return the values that become 0 and 255 unless `data.value_range` says otherwise."""
    return (0.0, 1.0) if values.dtype.kind == "f" else (0.0, 65535.0)


def deep_values(path: ImageFile, channels: int) -> NDArray[Any] | None:
    """Read the values of an image of more than 8 bits a channel as they are; None for any other.

    Of 16-bit colour, PIL reads the upper 8 bits; they are scaled back.
    """
    if path.suffix.lower() == ARRAY_SUFFIX:
        values = _channels_last(read_array(path), channels)
        return None if values.dtype in (np.uint8, np.bool_) else values
    with opened(path) as image:
        if is_deep_colour(image):
            return np.asarray(image.convert("RGB")).astype(np.uint16) * 257
        return np.asarray(image) if image.mode in _DEEP else None


def _channels_last(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """Return an array as [H, W, C], from [H, W], [H, W, C] or else [C, H, W]. Raises ValueError."""
    values = values[:, :, None] if values.ndim == 2 else values
    fitting = (1, 3) if channels in (1, 3) else (channels,)
    if values.shape[2] not in fitting and values.shape[0] in fitting:
        values = values.transpose(1, 2, 0)
    if values.shape[2] not in fitting:
        raise ValueError(f"has the shape {list(values.shape)}, not {channels} channels as data.channels says")
    return values


def _with_channels(image: Image.Image, channels: int) -> Planes:
    """Convert an 8-bit image to the channels asked for. Raises ValueError."""
    if image.mode in ("P", "PA"):  # by way of RGBA, as PIL advises where colours of the palette are transparent
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "LAB":  # which PIL converts into colour alone
        image = image.convert("RGB")
    if channels in (1, 3):
        mode = "L" if channels == 1 else "RGB"
        return [image if image.mode == mode else image.convert(mode)]  # convert would copy it
    if len(image.getbands()) != channels:
        rule = f"has {len(image.getbands())} channels as PIL reads it, not {channels} as data.channels says"
        raise ValueError(f"{rule}; more than PIL reads are saved as .npy")
    return list(image.split())


def is_deep_colour(image: Image.Image) -> bool:
    """Tell whether an image that is not loaded yet has 16 bits a channel in the file, and 8 when it is loaded."""
    return image.mode not in _DEEP and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 where there is none, or the metadata are damaged, which the pixels are not."""
    try:
        number: int = image.getexif().get(Base.Orientation, 1)
        return number
    except MemoryError:
        raise
    except Exception:  # the parser of the metadata raises errors of its own kinds
        return 1
