"""Pixel statistics: what an image's channels are normalised by, where they are known and where they are not."""

from typing import NamedTuple


class PixelStatistics(NamedTuple):
    """Pixel statistics are each channel's mean and standard deviation over the training images, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


PIXEL_STATISTICS = {
    "digits": PixelStatistics((0.3053,), (0.3760,)),
    "mnist": PixelStatistics((0.1307,), (0.3081,)),
    "cifar10": PixelStatistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "colour": PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's
    "grayscale": PixelStatistics((0.449,), (0.226,)),  # the same, averaged
}


def general_statistics(channels: int) -> PixelStatistics:
    """Return pixel statistics for images whose own are not known.

    ImageNet's serve for colour (3) and gray (1); of other channels, whose statistics are measured, those of pixels of
    which each value is as frequent.
    """
    name = {1: "grayscale", 3: "colour"}.get(channels)
    return PIXEL_STATISTICS[name] if name else PixelStatistics((0.5,) * channels, (0.2887,) * channels)


def shown_channels(channels: int) -> int:
    """Return how many of an image's channels, from the first on, a picture of it shows: 1 or 3."""
    return 3 if channels >= 3 else 1
