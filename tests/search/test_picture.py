"""The picture of the nearest images holds images of all kinds, and names of all kinds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import AxesImage
from PIL import Image

from moco_dist.evaluate import plots
from moco_dist.search import picture
from moco_dist.search.picture import Line, Tile


def saved(file: Path) -> Path:
    """Save an image whose kind and size the name tells: MODE_WIDTHxHEIGHT.SUFFIX."""
    mode, _, size = file.stem.partition("_")
    width, height = map(int, size.split("x"))
    if file.suffix == ".npy":
        np.save(file, np.zeros((height, width, int(mode)), np.uint8))
    else:
        Image.new(mode, (width, height)).save(file)
    return file


@pytest.mark.parametrize(
    ("name", "channels", "shape"),
    [
        ("RGB_30x20.png", 3, (20, 30, 3)),
        ("RGB_30x20.png", 1, (20, 30, 3)),
        ("L_30x20.png", 1, (20, 30, 3)),
        ("RGBA_4x5.png", 3, (5, 4, 3)),
        ("CMYK_4x5.jpg", 3, (5, 4, 3)),
        ("RGB_2000x1000.jpg", 3, (104, 208, 3)),
        ("L_9000x1.png", 3, (1, 208, 3)),
        ("L_1x9000.png", 1, (208, 1, 3)),
        ("2_6x7.npy", 2, (7, 6)),
        ("12_6x7.npy", 12, (7, 6, 3)),
    ],
)
def test_every_kind_of_image_is_read(name: str, channels: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    pixels = picture.read(saved(tmp_path / name), channels, None)
    assert pixels is not None and pixels.shape == shape and pixels.dtype == np.uint8


def test_what_cannot_be_read_is_drawn_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    assert picture.read(tmp_path / "a.png", 3, None) is None and picture.read(tmp_path / "none.png", 3, None) is None
    figure = picture.draw([Line(Tile(None, "query", "a.png"), [])])
    assert "cannot be read" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.png", ["a.png"]),
        ("cats/a.png", ["cats/", "a.png"]),
        ("$x_{1}$/" + 30 * "b" + "/" + 30 * "a" + ".png", ["…" + 22 * "b" + "/", "…" + 19 * "a" + ".png"]),
        ("中文/é\n.png", ["??/", "é?.png"]),
        (os.fsdecode(b"\xff/\xfe.png"), ["?/", "?.png"]),
    ],
)
def test_every_name_is_drawn(name: str, lines: list[str], tmp_path: Path) -> None:
    figure = picture.draw([Line(Tile(None, "query", name), [Tile(None, "0.5000", name)])])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "\n".join(["query", *lines]) in texts and "\n".join(["0.5000", *lines]) in texts
    plots.save(tmp_path / "a.png", figure)  # which warns of letters that it cannot draw


def test_images_stand_in_lines_of_ten_behind_their_query() -> None:
    tiles = [Tile(np.full((2, 4, 3), value, np.uint8), str(value), "a.png") for value in range(12)]
    figure = picture.draw([Line(tiles[0], tiles), Line(tiles[1], tiles[:3])])
    drawn = [artist for artist in figure.axes[0].get_children() if isinstance(artist, AxesImage)]
    centres = [((e[0] + e[1]) / 2, (e[2] + e[3]) / 2) for e in (image.get_extent() for image in drawn)]
    columns = [round(x / 1.45 - 0.5) for x, _ in centres]
    rows = [round((y - 0.75) / 1.9) for _, y in centres]
    assert columns == [0, *range(1, 11), 1, 2, 0, 1, 2, 3] and rows == [0] * 11 + [1, 1] + [2] * 4
    assert all(abs(e[1] - e[0]) == pytest.approx(2 * abs(e[3] - e[2])) for e in (i.get_extent() for i in drawn))
    assert figure.get_size_inches().tolist() == pytest.approx([11 * 1.45, 3 * 1.9])
