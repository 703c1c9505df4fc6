"""Draw queries and the images that are nearest to them, each above its similarity and its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from moco_dist.config.section import Interval
from moco_dist.data.decode import decode
from moco_dist.data.image_file import ImageFile
from moco_dist.data.pixel_statistics import shown_channels
from moco_dist.evaluate.style import drawable, plain_style
from moco_dist.search.request import PER_LINE

_WIDTH, _HEIGHT, _IMAGE, _LEAST = 1.45, 1.9, 1.3, 0.03
"""Width and height of a tile, side of the box that an image is fitted into, and least side of an image, in inches."""
_PIXELS = 208
"""The longer side of a drawn image has at most so many pixels."""
_LETTERS = 24
"""The number of letters that fit on a line below a tile."""
_GREY = "0.85"


class Tile(NamedTuple):
    """A tile is an image with its title and its name below it."""

    pixels: NDArray[np.uint8] | None
    """[H, W] or [H, W, 3]; None for an image that cannot be read."""
    title: str
    """The heading of the tile: the word for the query, or the similarity of a near image."""
    name: str
    """The name of its file."""


class Line(NamedTuple):
    """A line is a query and the images that are nearest to it, the nearest first."""

    query: Tile
    nearest: Sequence[Tile]


def read(file: ImageFile, channels: int, value_range: Interval | None) -> NDArray[np.uint8] | None:
    """Read an image as it is drawn: whole, small, and of many channels the first ones; None where that fails."""
    try:
        planes = decode(file, 3 if channels == 1 else channels, value_range)  # a gray encoder's images may be in colour
    except MemoryError:
        raise
    except Exception:  # decoders raise errors of their own kinds
        return None
    shown = planes[0] if len(planes) < 3 else Image.merge("RGB", planes[: shown_channels(len(planes))])
    shown.thumbnail((_PIXELS, _PIXELS))
    return np.asarray(shown)


@plain_style
def draw(lines: Sequence[Line]) -> Figure:
    """Draw a line for each query, which stands first in it; more than ten images go on below one another."""
    columns = 1 + min(PER_LINE, max(len(line.nearest) for line in lines))
    rows = sum(max(1, math.ceil(len(line.nearest) / PER_LINE)) for line in lines)
    figure = Figure(figsize=(columns * _WIDTH, rows * _HEIGHT))
    # One pair of axes, in inches: to lay out a pair for each image takes long.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, columns * _WIDTH), ylim=(rows * _HEIGHT, 0))
    axes.axis("off")
    row = 0
    for number, line in enumerate(lines):
        if number:
            axes.axhline(row * _HEIGHT, color=_GREY)
        tiles = [(row, 0, line.query)]
        tiles += [(row + n // PER_LINE, 1 + n % PER_LINE, tile) for n, tile in enumerate(line.nearest)]
        for of_tile, column, tile in tiles:
            left, top = column * _WIDTH, of_tile * _HEIGHT + 0.1
            _draw_image(axes, tile.pixels, left + _WIDTH / 2, top + _IMAGE / 2)
            weight = "bold" if column == 0 else "normal"
            text = "\n".join([tile.title, *_two_lines(tile.name)])
            place = (left + _WIDTH / 2, top + _IMAGE + 0.05)
            axes.text(*place, text, ha="center", va="top", fontsize=6.5, weight=weight, parse_math=False)
        row += max(1, math.ceil(len(line.nearest) / PER_LINE))
    return figure


def _draw_image(axes: Axes, pixels: NDArray[np.uint8] | None, x: float, y: float) -> None:
    """Draw an image around a place, as large as its tile allows."""
    if pixels is None:
        axes.text(x, y, "cannot be read", ha="center", va="center", fontsize=6.5, color="0.4")
        return
    sides = np.array(pixels.shape[:2])
    tall, wide = np.maximum(_IMAGE * sides / sides.max(), _LEAST) / 2
    extent = (x - wide, x + wide, y + tall, y - tall)
    axes.imshow(pixels, "gray", aspect="auto", vmin=0, vmax=255, extent=extent)
    axes.add_patch(Rectangle((x - wide, y - tall), 2 * wide, 2 * tall, fill=False, color=_GREY, linewidth=0.5))


def _two_lines(name: str) -> list[str]:
    """Write the folder and the name of a file, each by its end where it is long, in letters that can be drawn."""
    folder, slash, file = drawable(name).rpartition("/")
    return [part if len(part) <= _LETTERS else f"…{part[1 - _LETTERS :]}" for part in (folder + slash, file) if part]
